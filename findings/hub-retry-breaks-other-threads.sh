#!/usr/bin/env bash
# huggingface_hub 2.4.0: a retry after a refused connection breaks the requests that other threads have in flight.
#
# All threads of a process share one HTTP client. Calls that are retried (list_repo_tree, uploads, downloads) close it
# when a connection could not be made, so that the next try gets a new one. What another thread is receiving at that
# moment ends with "Bad file descriptor", though its server is there and answers. Calls that are retried themselves go
# on; the others, such as model_info, raise an error that names neither the hub nor the other thread. An answer of 503
# is retried as well and closes nothing. Whoever asks from threads has to try such a call again on ReadError.
#
# Seen, on Python 3.11 with a stand-in for the hub that takes 2 s to send its answer; what model_info returns:
#   while another thread's model_info is refused:               org/model
#   while another thread's list_repo_tree is answered 503:      org/model
#   while another thread's list_repo_tree is refused:           ReadError: [Errno 9] Bad file descriptor
# Fails when this changes.
set -euo pipefail
lock=$(cd "$(dirname "$0")/.." && pwd)/requirements/cpu.txt
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

python3 -m venv env
env/bin/pip install -qq --no-compile -c "$lock" huggingface_hub
env/bin/pip list 2>/dev/null | grep -E '^(huggingface_hub|httpx2) '

cat >ask.py <<'EOF'
import json
import socket
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread

from huggingface_hub import HfApi

call, how = sys.argv[1:]
arrived = Event()
ANSWER = json.dumps({"id": "org/model", "siblings": [{"rfilename": f"{number:0982}"} for number in range(8)]}).encode()


class Hub(BaseHTTPRequestHandler):
    def do_GET(self):
        wanted = self.path.endswith("/models/org/model")
        content = ANSWER if wanted else b"{}"
        self.send_response(200 if wanted else 503)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        for start in range(0, len(content), 1000):
            self.wfile.write(content[start : start + 1000])
            if wanted:
                arrived.set()
                time.sleep(0.25)

    def log_message(self, *_):
        pass


def other(port):
    api = HfApi(endpoint=f"http://127.0.0.1:{port}")
    list(api.list_repo_tree("org/other")) if call == "list_repo_tree" else api.model_info("org/other")


server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
Thread(target=server.serve_forever, daemon=True).start()
with socket.socket() as reserved:  # bound and not listening: whoever connects is refused
    reserved.bind(("127.0.0.1", 0))
    port = reserved.getsockname()[1] if how == "refused" else server.server_port
    Thread(target=lambda: arrived.wait() and other(port), daemon=True).start()
    try:
        found = HfApi(endpoint=f"http://127.0.0.1:{server.server_port}").model_info("org/model").id
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
print(f"while another thread's {call} is {how}: {found}")
EOF
export HF_HOME="$folder/cache"
while read -r call how; do
    env/bin/python ask.py "$call" "$how" </dev/null 2>>ask.log
done <<'EOF' | tee seen
model_info refused
list_repo_tree answered 503
list_repo_tree refused
EOF
diff seen - <<'EOF' || { echo "changed"; tail ask.log; exit 1; }
while another thread's model_info is refused: org/model
while another thread's list_repo_tree is answered 503: org/model
while another thread's list_repo_tree is refused: ReadError: [Errno 9] Bad file descriptor
EOF
echo "as stated: huggingface_hub 2.4.0"
