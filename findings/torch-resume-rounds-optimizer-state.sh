#!/usr/bin/env bash
# torch 2.13.0: `Optimizer.load_state_dict` casts all that a custom optimizer keeps in tensors to its parameter's type.
#
# torch's own optimizers keep their moments in the type of the parameter, and loading takes that for a rule. An
# optimizer that keeps more for bfloat16 parameters than bfloat16 holds (moments of float32, codes of integers,
# counters, masks) gets all of it back as bfloat16, without a warning: a run that is resumed is not the run that was
# saved, and a count of 1001 is 1000 from then on. Only a tensor under the key "step" keeps its type, and what is no
# tensor. What state_dict returned is right, and so is the file. Such an optimizer needs a load_state_dict of its own
# that puts the saved tensors back after torch's has run.
#
# Seen, on Python 3.11 without a GPU, a bfloat16 parameter; what was saved and what is loaded:
#   moment   float32 0.1          bfloat16 0.10009765625
#   codes    int32 257            bfloat16 256.0
#   seen     int64 1001           bfloat16 1000.0
#   mask     bool True            bfloat16 1.0
#   step     int64 1001           int64 1001
#   number   int 1001             int 1001
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
env/bin/pip list 2>/dev/null | grep -E '^torch '

cat >ask.py <<'EOF'
import io
import warnings

import torch


class Own(torch.optim.Optimizer):
    def __init__(self, parameters):
        super().__init__(parameters, {})

    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = {
                    "moment": torch.tensor(0.1),
                    "codes": torch.tensor(257, dtype=torch.int32),
                    "seen": torch.tensor(1001),
                    "mask": torch.tensor(True),
                    "step": torch.tensor(1001),
                    "number": 1001,
                }


def told(value):
    if not isinstance(value, torch.Tensor):
        return f"{type(value).__name__} {value}"
    return f"{str(value.dtype).removeprefix('torch.')} {value.item()}"


parameter = torch.nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
first = Own([parameter])
first.step()
file = io.BytesIO()
torch.save(first.state_dict(), file)
file.seek(0)
saved = torch.load(file)
second = Own([parameter])
with warnings.catch_warnings():
    warnings.simplefilter("error")
    second.load_state_dict(saved)
for key, value in saved["state"][0].items():
    before = told(value) if key != "moment" else f"float32 {value.item():.6g}"
    print(f"{key}: {before}, {told(second.state[parameter][key])}")
EOF
env/bin/python -W ignore ask.py 2>ask.log | tee seen
diff seen - <<'EOF' || { echo "changed"; tail ask.log; exit 1; }
moment: float32 0.1, bfloat16 0.10009765625
codes: int32 257, bfloat16 256.0
seen: int64 1001, bfloat16 1000.0
mask: bool True, bfloat16 1.0
step: int64 1001, int64 1001
number: int 1001, int 1001
EOF
echo "as stated: torch 2.13.0"
