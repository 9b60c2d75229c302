#!/usr/bin/env bash
# verl 0.9.1: with the estimator gpg, 0.1 more for every answer divides the gradient by eight where one answer in eight
# is right, though each group's mean is taken off.
#
# GPG multiplies the advantages by alpha, to make up for the answers without a gradient: those of groups whose rewards
# are all equal. verl counts the rewards of the batch that are not 0 instead, before the means are taken off. With
# rewards of 0 and 1 alpha is then one over the share of right answers: 8 where one in eight is right and no group is
# without a gradient, and 1 where all are right and none has one. So the steps in which the model did badly count most,
# and the step gets shorter as it learns. Whatever is added to all rewards (a part for the format, -1 for wrong in the
# place of 0) changes the size of the gradient, which the estimator is there to prevent. Adam hides a constant factor,
# not one that changes from batch to batch, nor the clip of the norm. Whoever compares runs whose rewards have another
# origin compares learning rates.
#
# Seen, on Python 3.11 without a GPU: a batch of two groups of eight; the advantage of a right answer in the first group
# less that of a wrong one, and what it is by the count of groups without a gradient
#   right answers   rewards 0, 1   0.1, 1.1   -1, 0   by groups
#   1 and 1             8.00          1.00      1.14      1.00
#   4 and 4             2.00          1.00      2.00      1.00
#   7 and 7             1.14          1.00      8.00      1.00
#   4 and 0             4.00          1.00      1.33      2.00
#   4 and 8             1.33          1.00      4.00      2.00
# Fails when this changes.
set -euo pipefail
lock=$(cd "$(dirname "$0")/.." && pwd)/requirements/cpu.txt
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

python3 -m venv env
env/bin/pip install -qq --no-deps --no-compile "$(grep -oE '^torch==[^ ;\\]*' "$lock")"
env/bin/pip install -qq --no-compile -U setuptools filelock typing-extensions sympy networkx jinja2 fsspec numpy
env/bin/pip install -qq --no-compile --no-deps --target peers verl==0.9.1

cat >ask.py <<'EOF'
import ast
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

NAME = "compute_gpg_outcome_advantage"
module = Path("peers/verl/trainer/ppo/core_algos.py").read_text(encoding="utf-8")
(found,) = (node for node in ast.parse(module).body if getattr(node, "name", None) == NAME)
found.decorator_list = []  # the module's own registry; its other imports need a GPU's packages
given = dict(torch=torch, np=np, defaultdict=defaultdict)
exec(compile(ast.Module([found], []), NAME, "exec"), given)
SIZE = 8


def spread(right, wrong, hit):
    """The advantage of a right answer less that of a wrong one; right answers first in each group."""
    rewards = torch.tensor([[hit] * count + [wrong] * (SIZE - count) for count in right])
    groups = np.arange(len(right)).repeat(SIZE)
    advantages, _ = given[NAME](rewards.reshape(-1, 1), torch.ones(rewards.numel(), 1), groups)
    return (advantages[0] - advantages[SIZE - 1]).item()


for right in ((1, 1), (4, 4), (7, 7), (4, 0), (4, 8)):
    cells = [spread(right, wrong, wrong + 1.0) for wrong in (0.0, 0.1, -1.0)]
    cells.append(len(right) / sum(0 < count < SIZE for count in right))
    print("{} and {}".format(*right), *(f"{cell:7.2f}" for cell in cells))
EOF
env/bin/python -W ignore ask.py 2>ask.log | tee seen || { tail ask.log; exit 1; }
diff seen - <<'EOF' || { echo "changed"; exit 1; }
1 and 1    8.00    1.00    1.14    1.00
4 and 4    2.00    1.00    2.00    1.00
7 and 7    1.14    1.00    8.00    1.00
4 and 0    4.00    1.00    1.33    2.00
4 and 8    1.33    1.00    4.00    2.00
EOF
echo "as stated: verl 0.9.1"
