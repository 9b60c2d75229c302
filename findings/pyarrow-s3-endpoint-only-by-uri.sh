#!/usr/bin/env bash
# pyarrow 26.0.1: AWS_ENDPOINT_URL is honoured by `FileSystem.from_uri("s3://...")` and not by `S3FileSystem()`.
#
# The variable is how a host is told of a store that is not Amazon's. boto3 reads it, and so does pyarrow where a URI is
# parsed, which includes read_table("s3://..."). A filesystem that is made by its class takes key, secret and token from
# the environment and no endpoint: it asks Amazon, with a key that was meant for the other store. Whoever makes one by
# its class has to pass endpoint_override.
#
# Seen, on Python 3.11, with stand-ins for the store and for a proxy that lets nothing out; who is asked:
#   AWS_ENDPOINT_URL:    from_uri: the store; S3FileSystem(): bucket.s3.us-east-1.amazonaws.com
#   AWS_ENDPOINT_URL_S3: the same
# Fails when this changes.
set -euo pipefail
lock=$(cd "$(dirname "$0")/.." && pwd)/requirements/cpu.txt
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

python3 -m venv env
env/bin/pip install -qq --no-compile -c "$lock" pyarrow
env/bin/pip list 2>/dev/null | grep -E '^pyarrow '

cat >ask.py <<'EOF'
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from pyarrow import fs

asked = []


class StandIn(BaseHTTPRequestHandler):
    def do_HEAD(self):
        asked.append("the store")
        self.send_response(200)
        self.send_header("content-length", "5")
        self.end_headers()

    def do_CONNECT(self):
        asked.append(self.path.partition(":")[0])
        self.send_error(403)

    def log_message(self, *_):
        pass


def start():
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    Thread(target=server.serve_forever, daemon=True).start()
    return server.server_port


os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}
os.environ[sys.argv[1]] = f"http://127.0.0.1:{start()}"
by_uri, path = fs.FileSystem.from_uri("s3://bucket/name?region=us-east-1")
proxy = {"scheme": "http", "host": "127.0.0.1", "port": start()}
by_class = fs.S3FileSystem(region="us-east-1", proxy_options=proxy)
for filesystem in (by_uri, by_class):
    try:
        filesystem.get_file_info(path)
    except OSError:  # the proxy lets nothing out
        pass
print(f"{sys.argv[1]}: from_uri: {asked[0]}; S3FileSystem(): {asked[1]}")
EOF
for name in AWS_ENDPOINT_URL AWS_ENDPOINT_URL_S3; do
    env -u AWS_ENDPOINT_URL -u AWS_ENDPOINT_URL_S3 -u http_proxy -u HTTP_PROXY env/bin/python ask.py "$name"
done | tee seen
diff seen - <<'EOF' || { echo "changed"; exit 1; }
AWS_ENDPOINT_URL: from_uri: the store; S3FileSystem(): bucket.s3.us-east-1.amazonaws.com
AWS_ENDPOINT_URL_S3: from_uri: the store; S3FileSystem(): bucket.s3.us-east-1.amazonaws.com
EOF
echo "as stated: pyarrow 26.0.1"
