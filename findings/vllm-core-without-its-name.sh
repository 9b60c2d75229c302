#!/usr/bin/env bash
# setproctitle 1.3.8, by which vLLM names its processes: where the first variable of the environment that a process began
# with is set again before, the process keeps its old name, and nothing says so.
#
# The package looks for the arguments of the process in the memory before its first variable, and a variable that is set
# again moves elsewhere. It then has nowhere to write, and sets no name in /proc either. vLLM and torch set many
# variables before a core is named, and which one is first depends on who starts the process. So one engine among many
# has a core that `ps`, `top`, a process exporter and `pkill VLLM::` know as "python" only: what cleans up after a run by
# that name leaves it, with its memory. Whoever starts engines puts a variable first that nobody changes, or looks for
# their processes by parents.
#
# Seen, on Python 3.11: the name that a process has after it was asked for VLLM::EngineCore, by what was set again
#   nothing                VLLM::EngineCor
#   the first variable     python
#   the second variable    VLLM::EngineCor
#   the first, to the same value   python
# Fails when this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

python3 -m venv env
env/bin/pip install -qq --no-compile setproctitle==1.3.8
env/bin/pip list 2>/dev/null | grep setproctitle

cat >ask.py <<'EOP'
import os
import sys

for variable, value in (pair.split("=") for pair in sys.argv[1:]):
    os.environ[variable] = value
import setproctitle

setproctitle.setproctitle("VLLM::EngineCore")
print(open("/proc/self/comm").read().strip())
EOP

named() { env -i OMP_NUM_THREADS=1 VLLM_PORT=5000 HOME=/ "$folder/env/bin/python" ask.py "$@"; }
seen="$(named) $(named OMP_NUM_THREADS=2) $(named VLLM_PORT=6000) $(named OMP_NUM_THREADS=1)"
echo "$seen"
[ "$seen" = "VLLM::EngineCor python VLLM::EngineCor python" ]
