#!/usr/bin/env bash
# torch 2.13.0: with a learning rate that is a tensor, all parameter groups have one and the same tensor, and schedulers
# that give each group a rate of its own give all of them the last group's.
#
# A tensor is what fused and compiled optimizers want, so that a change of the rate compiles nothing again. An optimizer
# puts the tensor itself, not a copy, into each group that names no rate. A number is replaced in its group; a tensor is
# filled in place, which fills it for every group, and the last one wins. LambdaLR with a function a group (the usual
# way to freeze, warm up or decay layers differently), OneCycleLR with a max_lr a group and a hand that sets
# group["lr"].fill_ are all hit: an adapter's or a head's rate goes to the whole model, or the whole model's to it.
# There is no warning, and get_last_lr says what is used. A checkpoint keeps the tie: loaded into an optimizer whose
# groups had tensors of their own, they are one again. With lr=tensor.clone() in each group, it is as with numbers.
#
# Seen, on Python 3.11 without a GPU, AdamW, two groups, 0.001 for the first and a tenth of it asked for the second
#                     a number         a tensor         a tensor a group
#   LambdaLR          0.001 0.0001     0.0001 0.0001    0.001 0.0001
#   OneCycleLR, peak  0.001 0.0001     0.0001 0.0001    0.001 0.0001
#   loaded: groups with tensors of their own have one again
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
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

RATE = 0.001


def optimizer(kind):
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))]} for _ in range(2)]
    if kind == "a tensor a group":
        for group in groups:
            group["lr"] = torch.tensor(RATE)
    return torch.optim.AdamW(groups, lr=RATE if kind == "a number" else torch.tensor(RATE))


def stepped(made, scheduler, steps):
    """The groups' rates at the step where they are highest."""
    seen = []
    for _ in range(steps):
        seen.append([float(group["lr"]) for group in made.param_groups])
        for group in made.param_groups:
            group["params"][0].grad = torch.ones(1)
        made.step()
        scheduler.step()
    return max(seen)


warnings.simplefilter("error")
for kind in ("a number", "a tensor", "a tensor a group"):
    made = optimizer(kind)
    rates = stepped(made, LambdaLR(made, [lambda step: 1.0, lambda step: 0.1]), 3)
    print(f"LambdaLR, {kind}:", *(f"{rate:.2g}" for rate in rates))
    made = optimizer(kind)
    rates = stepped(made, OneCycleLR(made, [RATE, RATE / 10], total_steps=20, cycle_momentum=False), 20)
    print(f"OneCycleLR, {kind}:", *(f"{rate:.2g}" for rate in rates))

file = io.BytesIO()
torch.save(optimizer("a tensor").state_dict(), file)
file.seek(0)
second = optimizer("a tensor a group")
second.load_state_dict(torch.load(file))
second.param_groups[1]["lr"].fill_(RATE / 10)
print("loaded, the second group filled:", *(f"{group['lr'].item():.2g}" for group in second.param_groups))
EOF
env/bin/python ask.py 2>ask.log | tee seen || { tail ask.log; exit 1; }
diff seen - <<'EOF' || { echo "changed"; tail ask.log; exit 1; }
LambdaLR, a number: 0.001 0.0001
OneCycleLR, a number: 0.001 0.0001
LambdaLR, a tensor: 0.0001 0.0001
OneCycleLR, a tensor: 0.0001 0.0001
LambdaLR, a tensor a group: 0.001 0.0001
OneCycleLR, a tensor a group: 0.001 0.0001
loaded, the second group filled: 0.0001 0.0001
EOF
echo "as stated: torch 2.13.0"
