#!/usr/bin/env bash
# torch 2.13.0: `torch.optim.Adafactor` with its defaults makes steps of one length on float32 weights, however small
# the gradient is, and on bfloat16 weights steps that shrink with the gradient, to next to nothing.
#
# Adafactor divides the gradient by the root of its mean square, so that a step is as long for gradients of 1e-1 as for
# gradients of 1e-5. eps[0] is None by default, which stands for torch.finfo(parameter's type).eps: 1.2e-7 in float32,
# where gradients are rarely smaller, and 0.0078 in bfloat16, where in a language model nearly all are. What is smaller
# is divided by 0.0078, as in SGD. So the memory-saving optimizer on memory-saving weights trains at a small part of the
# learning rate, another part for each matrix, and half the gradient makes half the step. Nothing warns, and the loss
# goes down slowly. A larger lr moves the matrices with large gradients too far before the others move. transformers'
# own Adafactor has 1e-30 for all types. With eps=(torch.finfo(torch.float32).eps, 1e-3) a bfloat16 weight steps as a
# float32 one does.
#
# Seen, on Python 3.11 without a GPU, a matrix of 64 x 64, the same gradients times a scale; the first step's length
#   the gradient's scale        1e-1     1e-2     1e-3     1e-4     1e-5
#   float32                     1        1        1        1        1
#   bfloat16                    1        1        0.13     0.013    0.0013
#   bfloat16, float32's eps     1        1        1        1        1
# with foreach and without. Fails when this changes.
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
import torch

FLOAT32 = torch.finfo(torch.float32).eps
torch.manual_seed(0)
gradient = torch.randn(64, 64)
gradient /= gradient.square().mean().sqrt()


def length(kind, eps, scale, foreach):
    """The root mean square of a first step from zero, in parts of lr * eps[1], which is what the formula gives."""
    parameter = torch.nn.Parameter(torch.zeros(64, 64, dtype=kind))
    optimizer = torch.optim.Adafactor([parameter], lr=0.1, eps=(eps, 1e-3), weight_decay=0.0, foreach=foreach)
    parameter.grad = (scale * gradient).to(kind)
    optimizer.step()
    return parameter.detach().float().square().mean().sqrt().item() / (0.1 * 1e-3)


for name, kind, eps in (
    ("float32", torch.float32, None),
    ("bfloat16", torch.bfloat16, None),
    ("bfloat16, float32's eps", torch.bfloat16, FLOAT32),
):
    for foreach in (False, True):
        steps = [length(kind, eps, 10.0**-power, foreach) for power in range(1, 6)]
        print(f"{name}, foreach {foreach}:", *(f"{step:.2g}" for step in steps))
EOF
env/bin/python -W ignore ask.py 2>ask.log | tee seen || { tail ask.log; exit 1; }
diff seen - <<'EOF' || { echo "changed"; tail ask.log; exit 1; }
float32, foreach False: 1 1 1 1 1
float32, foreach True: 1 1 1 1 1
bfloat16, foreach False: 1 1 0.13 0.013 0.0013
bfloat16, foreach True: 1 1 0.13 0.013 0.0013
bfloat16, float32's eps, foreach False: 1 1 1 1 1
bfloat16, float32's eps, foreach True: 1 1 1 1 1
EOF
echo "as stated: torch 2.13.0"
