#!/usr/bin/env bash
# huggingface_hub 2.4.0: a model that was downloaded by its commit is not found by its name without a network.
#
# A cache keeps files by commit (snapshots/COMMIT) and beside them which commit a branch means (refs/BRANCH).
# snapshot_download(NAME, revision=COMMIT) writes the files and no refs/main, also where COMMIT is what main is at that
# moment. Whoever fills the caches of hosts without a network that way, to have the same model on each, has every file
# there, and loading NAME fails; by NAME with revision=COMMIT it loads. resolve_revision(NAME) before the download writes
# the reference (and returns a str that reads "main": its commit is .resolved).
#
# Seen, on Python 3.11 with a stand-in for the hub that holds one model of one commit (transformers 5.19.0):
#   files in the cache: config.json
#   offline, by name and commit: llama
#   offline, by name: OSError
#   offline, by name, after resolve_revision: llama
# Fails when this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'kill "${hub:-}" 2>/dev/null || true; rm -rf "$folder"' EXIT
cd "$folder"

python3 -m venv env
env/bin/pip install -qq --no-compile huggingface_hub==2.4.0 transformers==5.19.0
env/bin/pip list 2>/dev/null | grep -E '^(huggingface_hub|transformers) '

cat >hub.py <<'EOF'
import json
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "a1" * 20
CONFIG = json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}).encode()
TREE = [{"type": "file", "path": "config.json", "size": len(CONFIG), "oid": sha1(CONFIG).hexdigest()}]


class Hub(BaseHTTPRequestHandler):
    def do_GET(self):
        path = self.path.partition("?")[0]
        answers = {f"/org/model/resolve/{name}/config.json": CONFIG for name in ("main", COMMIT)}
        answers |= {f"/api/models/org/model/revision/{name}": {"id": "org/model", "sha": COMMIT} for name in ("main", COMMIT)}
        answers["/api/models/org/model"] = {"id": "org/model", "sha": COMMIT}
        answers[f"/api/models/org/model/tree/{COMMIT}"] = TREE
        found = answers.get(path)
        content = found if isinstance(found, bytes) else json.dumps(found or {}).encode()
        self.send_response(404 if found is None else 200)
        self.send_header("content-length", str(len(content)))
        self.send_header("x-repo-commit", COMMIT)
        self.send_header("etag", f'"{sha1(content).hexdigest()}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
Path("port").write_text(str(server.server_port))
server.serve_forever()
EOF
env/bin/python hub.py &
hub=$!
until [ -s port ]; do sleep 0.1; done

cat >load.py <<'EOF'
import sys

from transformers import AutoConfig

try:
    found = AutoConfig.from_pretrained("org/model", **({"revision": sys.argv[2]} if sys.argv[2:] else {})).model_type
except OSError as error:
    found = type(error).__name__
print(f"offline, {sys.argv[1]}: {found}")
EOF

commit=$(printf 'a1%.0s' {1..20})
export HF_ENDPOINT="http://127.0.0.1:$(cat port)" HF_HOME="$folder/cache" HF_HUB_DISABLE_PROGRESS_BARS=1
env/bin/python -c "from huggingface_hub import snapshot_download; snapshot_download('org/model', revision='$commit')"
{
    echo "files in the cache: $(ls cache/hub/models--org--model/snapshots/"$commit")"
    HF_HUB_OFFLINE=1 env/bin/python load.py "by name and commit" "$commit" 2>/dev/null
    HF_HUB_OFFLINE=1 env/bin/python load.py "by name" 2>/dev/null
    env/bin/python -c "from huggingface_hub import resolve_revision; assert resolve_revision('org/model') == 'main'"
    HF_HUB_OFFLINE=1 env/bin/python load.py "by name, after resolve_revision" 2>/dev/null
} | tee seen
diff seen - <<'EOF'
files in the cache: config.json
offline, by name and commit: llama
offline, by name: OSError
offline, by name, after resolve_revision: llama
EOF
