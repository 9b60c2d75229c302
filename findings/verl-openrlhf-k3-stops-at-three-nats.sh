#!/usr/bin/env bash
# verl 0.9.1 and OpenRLHF 0.11.2: the KL estimator k3 has no gradient at a token that the reference finds more than 2.61
# nats likelier than the policy does.
#
# k3 is exp(x) - x - 1 with x = log p_ref - log p. Both cut it at 10, which it reaches at x = 2.61, and a value that is
# cut has no gradient. So as a loss it pulls back what the policy has lost a little, and leaves alone what it has lost
# altogether: a token at 0.0001 where the reference has 0.01, where the formula itself pulls hardest. In verl's
# on-policy distillation it is the loss by default (loss_mode k3, use_policy_gradient false), with the teacher as the
# reference, so that the tokens of which the teacher has most to say teach nothing. OpenRLHF cuts k2 as well, which
# ends at 4.47 nats; verl does not. verl's "k3+" and OpenRLHF's unbiased_gradient have k2's gradient without an end. As
# a reward, which needs no gradient, the cut does no such harm.
#
# Seen, on Python 3.11 without a GPU; the gradient by the policy's log-prob where the reference is likelier by x nats:
#   x                                 1.0       2.5       3.0       4.6
#   exp(x) - x - 1, as written      -1.72    -11.18    -19.09    -98.48
#   verl k3                         -1.72    -11.18      0.00      0.00
#   verl k3+                        -1.00     -2.50     -3.00     -4.60
#   verl k2                         -1.00     -2.50     -3.00     -4.60
#   OpenRLHF k3                     -1.72    -11.18      0.00      0.00
#   OpenRLHF k3, unbiased_gradient  -1.00     -2.50     -3.00     -4.60
#   OpenRLHF k2                     -1.00     -2.50     -3.00      0.00
# Fails when this changes.
set -euo pipefail
lock=$(cd "$(dirname "$0")/.." && pwd)/requirements/cpu.txt
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

python3 -m venv env
env/bin/pip install -qq --no-deps --no-compile "$(grep -oE '^torch==[^ ;\\]*' "$lock")"
env/bin/pip install -qq --no-compile -U setuptools filelock typing-extensions sympy networkx jinja2 fsspec pyyaml
env/bin/pip install -qq --no-compile --no-deps --target peers verl==0.9.1 openrlhf==0.11.2

cat >ask.py <<'EOF'
import ast
from pathlib import Path
from typing import Optional

import torch
import yaml


def functions(file, *names):
    """Of a module of a package whose other modules need a GPU's packages: these functions and plain constants."""
    wanted = {"torch": torch, "Optional": Optional}
    for node in ast.parse(Path("peers", file).read_text(encoding="utf-8")).body:
        constant = isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        if constant or isinstance(node, ast.FunctionDef) and node.name in names:
            exec(compile(ast.Module([node], []), file, "exec"), wanted)
    return [wanted[name] for name in names]


(verl, _) = functions("verl/trainer/ppo/core_algos.py", "kl_penalty", "kl_penalty_forward")
(openrlhf,) = functions("openrlhf/models/utils.py", "compute_approx_kl")
LOSSES = {
    "exp(x) - x - 1, as written": lambda own, reference: (reference - own).exp() - (reference - own) - 1,
    "verl k3": lambda own, reference: verl(own, reference, "k3"),
    "verl k3+": lambda own, reference: verl(own, reference, "k3+"),
    "verl k2": lambda own, reference: verl(own, reference, "k2"),
    "OpenRLHF k3": lambda own, reference: openrlhf(own, reference, kl_estimator="k3"),
    "OpenRLHF k3, unbiased_gradient": lambda own, reference: openrlhf(
        own, reference, kl_estimator="k3", unbiased_gradient=True
    ),
    "OpenRLHF k2": lambda own, reference: openrlhf(own, reference, kl_estimator="k2"),
}
for name, loss in LOSSES.items():
    own = torch.full((4,), -9.0, requires_grad=True)
    loss(own, own.detach() + torch.tensor([1.0, 2.5, 3.0, 4.6])).sum().backward()
    print(f"{name:<30}", *(f"{value + 0.0:9.2f}" for value in own.grad.tolist()))
defaults = yaml.safe_load(Path("peers/verl/trainer/config/distillation/distillation.yaml").read_text())
chosen = defaults["distillation_loss"]
print("verl's distillation:", chosen["loss_mode"], "as a reward", chosen["use_policy_gradient"])
EOF
env/bin/python -W ignore ask.py 2>ask.log | tee seen || { tail ask.log; exit 1; }
diff seen - <<'EOF' || { echo "changed"; exit 1; }
exp(x) - x - 1, as written         -1.72    -11.18    -19.09    -98.48
verl k3                            -1.72    -11.18      0.00      0.00
verl k3+                           -1.00     -2.50     -3.00     -4.60
verl k2                            -1.00     -2.50     -3.00     -4.60
OpenRLHF k3                        -1.72    -11.18      0.00      0.00
OpenRLHF k3, unbiased_gradient     -1.00     -2.50     -3.00     -4.60
OpenRLHF k2                        -1.00     -2.50     -3.00      0.00
verl's distillation: k3 as a reward False
EOF
echo "as stated: verl 0.9.1, OpenRLHF 0.11.2"
