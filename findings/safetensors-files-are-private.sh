#!/usr/bin/env bash
# safetensors 0.8.0: `save_file` leaves a file that its owner alone may read, whatever the umask says.
#
# The file has mode 0600, where every other file of the same process has what the umask leaves. So a model folder that
# transformers' save_pretrained wrote has a config.json that a group can read and weights that it cannot: on a shared
# disk an engine of another user reads the config and the tokenizer, and not the weights. A file that was there is
# replaced, and has mode 0600 from then on. torch.save goes by the umask, and so does safetensors' own `save` with a
# file that Python opens. Whoever shares a folder has to chmod after each save.
#
# Seen, on Linux with Python 3.11; the mode of a file that is made with the umask 022, 002:
#   open, torch.save, open and save   0644 0664
#   save_file                         0600 0600
#   save_file over a file of 0664     0600
# Fails when this changes.
set -euo pipefail
lock=$(cd "$(dirname "$0")/.." && pwd)/requirements/cpu.txt
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

python3 -m venv env
env/bin/pip install -qq --no-deps --no-compile "$(grep -oE '^torch==[^ ;\\]*' "$lock")"
env/bin/pip install -qq --no-compile -U -c "$lock" setuptools numpy filelock typing-extensions sympy \
    networkx jinja2 fsspec
env/bin/pip install -qq --no-compile -c "$lock" safetensors
env/bin/pip list 2>/dev/null | grep -E '^(safetensors|torch) '

cat >ask.py <<'EOF'
import os
import stat
from pathlib import Path

import torch
from safetensors.torch import save, save_file

tensors = {"weight": torch.ones(3)}
WAYS = {
    "open": lambda path: path.write_text("{}"),
    "torch.save": lambda path: torch.save(tensors, path),
    "open and save": lambda path: path.write_bytes(save(tensors)),
    "save_file": lambda path: save_file(tensors, path),
}


def mode(path):
    return f"{stat.S_IMODE(path.stat().st_mode):04o}"


for way, write in WAYS.items():
    modes = []
    for umask in (0o022, 0o002):
        os.umask(umask)
        path = Path(f"{way}-{umask}")
        write(path)
        modes.append(mode(path))
    print(f"{way}:", *modes)
there = Path("open-2")
assert mode(there) == "0664"
save_file(tensors, there)
print("save_file over a file of 0664:", mode(there))
EOF
env/bin/python ask.py | tee seen
diff seen - <<'EOF' || { echo "changed"; exit 1; }
open: 0644 0664
torch.save: 0644 0664
open and save: 0644 0664
save_file: 0600 0600
save_file over a file of 0664: 0600
EOF
echo "as stated: safetensors 0.8.0"
