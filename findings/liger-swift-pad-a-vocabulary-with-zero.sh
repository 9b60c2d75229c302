#!/usr/bin/env bash
# liger-kernel 0.8.5 and ms-swift 4.6.0: where the teacher's vocabulary has more rows than the student's, the distillation
# loss depends on what no probability depends on: the level of the logits.
#
# Larger models of a family often pad their vocabulary further (Qwen 2.5: 151,936 rows and 152,064), and both libraries
# take such a pair. liger gives the student the logit 0 for each row that it lacks, ms-swift the teacher's logit. Neither
# is nothing: how much probability a logit has depends on where the model's others lie, and a constant added to all of
# them changes no probability. Where the student's logits lie low, the rows that are no tokens get most of its
# probability: the loss is then about them, and the gradient that moves tokens against each other is wrong or gone. Where
# they lie high all is well, so that a test with another family says nothing. Nothing warns. What can be compared are the
# rows that both have: the larger model's logits are cut before the softmax.
#
# Seen, on Python 3.11 without a GPU: random heads of 200 rows and of 328, whose last 128 lie 30 below the teacher's level;
# nats a token, and how far the student's gradient is from the exact one, as a part of it (what moves all rows left out)
#   level added to the student's logits, the teacher's    exact      liger-kernel          ms-swift
#   KL(teacher, student)    20,  20                       10.38     10.38   0.00      10.38   0.00
#                            0,   0                       10.38     10.38   0.00      10.38   0.00
#                          -10, -10                       10.38     13.48   0.56      10.38   0.00
#                          -20, -20                       10.38     23.14   0.74      10.38   0.00
#                          -20,  20                       10.38     23.14   0.74      13.48   0.56
#   KL(student, teacher)    20,  20                        9.78      9.78   0.00       9.78   0.00
#                            0,   0                        9.78      9.88   0.03       9.78   0.00
#                          -10, -10                        9.78     32.34   1.77       9.78   0.00
#                          -20, -20                        9.78     36.87   1.00       9.78   0.00
#                          -20,  20                        9.78     36.87   1.00      32.34   1.77
# Fails when this changes.
set -euo pipefail
lock=$(cd "$(dirname "$0")/.." && pwd)/requirements/cpu.txt
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

python3 -m venv env
env/bin/pip install -qq --no-deps --no-compile "$(grep -oE '^torch==[^ ;\\]*' "$lock")"
env/bin/pip install -qq --no-compile -U setuptools filelock typing-extensions sympy networkx jinja2 fsspec numpy
env/bin/pip install -qq --no-compile --no-deps --target peers liger-kernel==0.8.5 ms-swift==4.6.0

cat >ask.py <<'EOF'
import sys
from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType

import torch
from torch import Tensor

for name in ("liger_kernel", "liger_kernel.chunked_loss"):  # without what they import for a GPU
    sys.modules[name] = ModuleType(name)
    sys.modules[name].__path__ = [f"peers/{name.replace('.', '/')}"]
from liger_kernel.chunked_loss.jsd_loss import LigerFusedLinearJSDLoss

spec = spec_from_file_location("gkd_loss", "peers/swift/rlhf_trainers/gkd_loss.py")
swift = sys.modules["gkd_loss"] = module_from_spec(spec)
spec.loader.exec_module(swift)

TOKENS, WIDTH, SHARED, MORE = 32, 16, 200, 128
torch.manual_seed(0)
hidden = torch.cat([torch.randn(TOKENS, WIDTH), torch.ones(TOKENS, 1)], 1)
heads = [torch.randn(SHARED, WIDTH) for _ in range(2)]
LABELS = torch.zeros(TOKENS, dtype=torch.long)


def at_level(head: Tensor, level: float) -> Tensor:
    """The head with `level` added to each logit, which no probability sees."""
    return torch.cat([head, torch.full((len(head), 1), level)], 1)


def exact(own: Tensor, others: Tensor, beta: float) -> Tensor:
    p, q = ((hidden @ head[:SHARED].T).double().softmax(-1) for head in (others, own))
    first, second = (p, q) if beta == 0 else (q, p)
    return (first * (first / second).log()).sum(-1).mean()


def liger(own: Tensor, others: Tensor, beta: float) -> Tensor:
    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta, compiled=False)
    return loss(hidden, own, hidden, others, LABELS)


def ms_swift(own: Tensor, others: Tensor, beta: float) -> Tensor:
    teacher = swift.TeacherOutput(full_logits=(hidden @ others.T)[None])
    total, number = swift.gkd_loss((hidden @ own.T)[None], teacher, LABELS[None], beta, 1.0)
    return total / number


def asked(loss, level: float, teachers_level: float, beta: float) -> tuple[float, Tensor]:
    """The loss, and its gradient by the student's head as it moves tokens against each other."""
    own = at_level(heads[0], level).requires_grad_()
    nothing = torch.zeros(MORE, WIDTH)
    others = torch.cat([at_level(heads[1], teachers_level), at_level(nothing, teachers_level - 30)])
    value = loss(own, others, beta)
    value.backward()
    gradient = own.grad[:, :WIDTH]
    return value.item(), gradient - gradient.mean(0)


for what, beta in (("KL(teacher, student)", 0.0), ("KL(student, teacher)", 1.0)):
    for level, teachers_level in ((20.0, 20.0), (0.0, 0.0), (-10.0, -10.0), (-20.0, -20.0), (-20.0, 20.0)):
        value, true = asked(exact, level, teachers_level, beta)
        line = f"{what} {level:4.0f} {teachers_level:4.0f} {value:9.2f}"
        for loss in (liger, ms_swift):
            value, gradient = asked(loss, level, teachers_level, beta)
            line += f" {value:9.2f} {((gradient - true).norm() / true.norm()).item():5.2f}"
        print(line)
EOF
env/bin/python -W ignore ask.py | tee seen
diff seen - <<'EOF' || { echo "changed"; exit 1; }
KL(teacher, student)   20   20     10.38     10.38  0.00     10.38  0.00
KL(teacher, student)    0    0     10.38     10.38  0.00     10.38  0.00
KL(teacher, student)  -10  -10     10.38     13.48  0.56     10.38  0.00
KL(teacher, student)  -20  -20     10.38     23.14  0.74     10.38  0.00
KL(teacher, student)  -20   20     10.38     23.14  0.74     13.48  0.56
KL(student, teacher)   20   20      9.78      9.78  0.00      9.78  0.00
KL(student, teacher)    0    0      9.78      9.88  0.03      9.78  0.00
KL(student, teacher)  -10  -10      9.78     32.34  1.77      9.78  0.00
KL(student, teacher)  -20  -20      9.78     36.87  1.00      9.78  0.00
KL(student, teacher)  -20   20      9.78     36.87  1.00     32.34  1.77
EOF
echo "as stated: liger-kernel 0.8.5, ms-swift 4.6.0"
