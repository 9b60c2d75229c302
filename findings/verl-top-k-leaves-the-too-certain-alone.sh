#!/usr/bin/env bash
# verl 0.9.1: distillation with forward_kl_topk has no loss and no gradient where the student is more certain than the
# teacher.
#
# The loss adds p log(p / q) up over the teacher's k likeliest tokens (32 by default). What lies outside of them is no
# part of it, so that the sum is no divergence: it is below 0 where the student has more on these tokens than the
# teacher, and what is below 0 is cut to 0. A student that is too flat is trained until the sum is 0, which is past the
# teacher. One that is too sharp is left as it is, also where it is more than half a nat away, and a step that went too
# far is not taken back. The teacher itself has a gradient. The log shows a loss near 0; student_mass above teacher_mass
# is the sign. It is worse the less of the teacher's probability the k tokens have. With one more term on both sides,
# for all the other tokens together, the sum is a divergence, and nothing has to be cut.
#
# Seen, on Python 3.11 without a GPU: 20,000 tokens, the teacher's logits random, the student's the same times a factor;
# then 200 steps of SGD on the loss. Divergence over all tokens, in nats; the teacher has 0.51 on its 32 tokens
#   factor   divergence    loss   gradient   divergence after   on the 32 tokens: before   after
#   0.80          0.146   0.287      0.119              0.094                       0.30    0.56
#   0.90          0.035   0.124      0.100              0.028                       0.40    0.53
#   1.00          0.000   0.000      0.078              0.000                       0.51    0.51
#   1.10          0.032   0.000      0.000              0.032                       0.61    0.61
#   1.25          0.184   0.000      0.000              0.184                       0.74    0.74
#   1.50          0.637   0.000      0.000              0.637                       0.88    0.88
# Fails when this changes.
set -euo pipefail
lock=$(cd "$(dirname "$0")/.." && pwd)/requirements/cpu.txt
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

python3 -m venv env
env/bin/pip install -qq --no-deps --no-compile "$(grep -oE '^torch==[^ ;\\]*' "$lock")"
env/bin/pip install -qq --no-compile -U setuptools filelock typing-extensions sympy networkx jinja2 fsspec pyyaml
env/bin/pip install -qq --no-compile --no-deps --target peers verl==0.9.1

cat >ask.py <<'EOF'
import ast
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Optional

import torch
import torch.nn.functional as F
import yaml

ROOT = Path("peers/verl/trainer")


def load(file, *names, **given):
    """Of a module whose imports need a GPU's packages: these functions."""
    wanted = dict(torch=torch, F=F, Any=Any, Optional=Optional) | given
    for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body:
        if getattr(node, "name", None) in names:
            node.decorator_list = []
            exec(compile(ast.Module([node], []), file, "exec"), wanted)
    return wanted[names[-1]]


names = dict.fromkeys(("DistillationConfig", "DistillationLossConfig", "ActorConfig", "TensorDict"), Any)
summed = load(
    "distillation/fsdp/losses.py",
    "kl_divergence",
    "compute_forward_kl_topk",
    get_ulysses_sequence_parallel_world_size=lambda: 1,
    **names,
)
cut = load(
    "distillation/losses.py",
    "compute_forward_kl_topk",
    no_padding_2_padding=lambda values, data: values,
    Metric=lambda kind, value: value,
    AggregationType=SimpleNamespace(MIN=0, MAX=1),
    **names,
)
chosen = yaml.safe_load((ROOT / "config/distillation/distillation.yaml").read_text())["distillation_loss"]
config = SimpleNamespace(
    distillation_loss=SimpleNamespace(topk=chosen["topk"], log_prob_min_clamp=chosen["log_prob_min_clamp"])
)
print("topk", chosen["topk"])


def nested(values):
    return torch.nested.nested_tensor([values], layout=torch.jagged)


def loss_of(student, log_probs, ids):
    found = summed(student[None, None], nested(log_probs[None]), nested(ids[None]), config, "thd")
    return cut(None, config, found, {"response_mask": torch.ones(1, 1)})[0].sum()


torch.manual_seed(0)
teacher = torch.randn(20_000) * 3
whole = teacher.log_softmax(-1)
log_probs, ids = whole.topk(chosen["topk"])


def seen(student):
    own = student.detach().log_softmax(-1)
    return (whole.exp() * (whole - own)).sum().item(), own[ids].exp().sum().item()


for factor in (0.8, 0.9, 1.0, 1.1, 1.25, 1.5):
    student = (teacher * factor).requires_grad_(True)
    before, mass = seen(student)
    for step in range(200):
        loss = loss_of(student, log_probs, ids)
        (gradient,) = torch.autograd.grad(loss, student)
        if step == 0:
            first = f"{loss.item():.3f} {gradient.norm().item():.3f}"
        student.data -= 0.5 * gradient
    after, mass_after = seen(student)
    print(f"{factor:.2f} {before:.3f} {first} {after:.3f} {log_probs.exp().sum().item():.2f} {mass:.2f} {mass_after:.2f}")
EOF
env/bin/python -W ignore ask.py 2>ask.log | tee seen || { tail ask.log; exit 1; }
diff seen - <<'EOF' || { echo "changed"; exit 1; }
topk 32
0.80 0.146 0.287 0.119 0.094 0.51 0.30 0.56
0.90 0.035 0.124 0.100 0.028 0.51 0.40 0.53
1.00 0.000 0.000 0.078 0.000 0.51 0.51 0.51
1.10 0.032 0.000 0.000 0.032 0.51 0.61 0.61
1.25 0.184 0.000 0.000 0.184 0.51 0.74 0.74
1.50 0.637 0.000 0.000 0.637 0.51 0.88 0.88
EOF
echo "as stated: verl 0.9.1"
