#!/usr/bin/env bash
# verl 0.9.1: on-policy distillation with use_policy_gradient and the default loss_mode k3 (or k2) leads the student
# away from the teacher, also one that begins beside it, towards the teacher's likeliest token alone.
#
# With the flag, minus the estimator is the advantage of the token that was drawn. k3 and k2 have the right mean, but
# are never below 0: every token is pushed down, those that the teacher likes more as well, and those least on which
# both agree. What has lost some probability loses more. The mean of k3 times the score is the gradient of KL(student,
# teacher) less that of KL(teacher, student). Near the teacher these two are the same: what is left is small, of any
# direction, and does not hold a student there. k1, which has a sign, gives the exact gradient. Differentiated
# (use_policy_gradient false, as in the YAML), k3 and k2 do lead to the teacher. The dataclass has k3 and true by
# default. Its docstring recommends k1 with the flag. k1 without the flag is an error and forward_kl_topk with it prints
# a warning; k3 and k2 with it do neither.
#
# Seen, on Python 3.11 without a GPU: one place of 100 tokens, a teacher that gives its likeliest one 0.60, and a
# student near it; means over all tokens in the place of draws. The gradient along the exact one, as a part of it, and
# 500 steps of SGD
#   divergence before   estimator   gradient   divergence after   likeliest token   after, differentiated
#         0.005         k1              1.00              0.000              0.60                   refused
#         0.005         k2              0.07              0.506              1.00                     0.000
#         0.005         k3              0.07              0.505              1.00                     0.000
#         0.050         k1              1.00              0.001              0.60                   refused
#         0.050         k2              0.19              0.507              1.00                     0.001
#         0.050         k3              0.15              0.506              1.00                     0.001
#         0.235         k1              1.00              0.003              0.60                   refused
#         0.235         k2              0.27              0.507              1.00                     0.003
#         0.235         k3              0.17              0.506              1.00                     0.002
# Fails when this changes.
set -euo pipefail
lock=$(cd "$(dirname "$0")/.." && pwd)/requirements/cpu.txt
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

pinned() { grep -oE "^$1==[^ ;\\]*" "$lock"; }
python3 -m venv env
env/bin/pip install -qq --no-deps --no-compile "$(pinned torch)"
env/bin/pip install -qq --no-compile -U setuptools filelock typing-extensions sympy networkx jinja2 fsspec
env/bin/pip install -qq --no-compile --no-deps --target peers verl==0.9.1

cat >ask.py <<'EOF'
import ast
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Optional

import torch

given = dict(torch=torch, Any=Any, Optional=Optional, ActorConfig=SimpleNamespace, AlgoConfig=type(None))
given["verl_F"] = SimpleNamespace(
    masked_sum=lambda values, mask: (values * mask).sum(),
    masked_mean=lambda values, mask: (values * mask).sum() / mask.sum(),
)
WANTED = ("agg_loss", "compute_policy_loss_vanilla", "kl_penalty", "kl_penalty_forward")
FILE = Path("peers/verl/trainer/ppo/core_algos.py")  # whose other imports need a GPU's packages
for node in ast.parse(FILE.read_text(encoding="utf-8")).body:
    if getattr(node, "name", None) in WANTED:
        node.decorator_list = []
        exec(compile(ast.Module([node], []), FILE, "exec"), given)


class Settings(SimpleNamespace):
    def get(self, name, default=None):
        return getattr(self, name, default)


TOKENS, STEPS = 100, 500
torch.manual_seed(0)
teacher = (2 * torch.randn(TOKENS)).log_softmax(-1)
away = torch.randn(TOKENS)
clip = dict(clip_ratio=0.2, clip_ratio_low=0.2, clip_ratio_high=0.2)
settings = Settings(**clip, global_batch_info={})


def divergence(logits):
    student = logits.log_softmax(-1)
    return (student.exp() * (student - teacher)).sum()


def kl_gradient(logits):
    leaf = logits.clone().requires_grad_()
    return torch.autograd.grad(divergence(leaf), leaf)[0]


def gradient(logits, mode):
    """Of the policy loss whose advantages are minus the estimator, as its mean over all samples: each token by its
    probability, in the place of draws."""
    leaf = logits.clone().requires_grad_()
    student = leaf.log_softmax(-1)
    advantages = -given["kl_penalty"](student, teacher, mode).detach()
    weights = student.detach().exp() * TOKENS
    rows = [value.unsqueeze(0) for value in (student.detach(), student, weights * advantages)]
    loss, _ = given["compute_policy_loss_vanilla"](*rows, torch.ones(1, TOKENS), "token-mean", settings)
    return torch.autograd.grad(loss, leaf)[0]


def differentiated(logits, mode):
    """Of the estimator itself, as with use_policy_gradient false."""
    leaf = logits.clone().requires_grad_()
    student = leaf.log_softmax(-1)
    loss = (student.detach().exp() * given["kl_penalty"](student, teacher, mode)).sum()
    return torch.autograd.grad(loss, leaf)[0]


def trained(logits, gradient_of, mode):
    for _ in range(STEPS):
        logits = logits - gradient_of(logits, mode)
    return logits


for scale in (0.1, 0.3, 0.6):
    start = teacher + scale * away
    exact = kl_gradient(start)
    for mode in ("k1", "k2", "k3"):
        along = (gradient(start, mode) @ exact / (exact @ exact)).item()
        after = trained(start, gradient, mode)
        own = f"{divergence(trained(start, differentiated, mode)):.3f}" if mode != "k1" else "refused"
        figures = f"{along:.2f} {divergence(after):.3f} {after.softmax(-1).max():.2f}"
        print(f"{divergence(start):.3f} {mode} {figures} {own}")
EOF
env/bin/python -W ignore ask.py 2>ask.log | tee seen || { tail ask.log; exit 1; }
diff seen - <<'EOF' || { echo "changed"; exit 1; }
0.005 k1 1.00 0.000 0.60 refused
0.005 k2 0.07 0.506 1.00 0.000
0.005 k3 0.07 0.505 1.00 0.000
0.050 k1 1.00 0.001 0.60 refused
0.050 k2 0.19 0.507 1.00 0.001
0.050 k3 0.15 0.506 1.00 0.001
0.235 k1 1.00 0.003 0.60 refused
0.235 k2 0.27 0.507 1.00 0.003
0.235 k3 0.17 0.506 1.00 0.002
EOF
echo "as stated: verl 0.9.1"
