#!/usr/bin/env bash
# SkyRL 0.3.0 with its own AIME environment (skyrl-gym 0.4.0): the estimator maxrl pushes right answers down and wrong
# ones up where fewer than half of a group are right.
#
# MaxRL divides what a reward has above its group's mean by the mean, which is the share of right answers where rewards
# are 0 and 1. The environment pays 1 and -1. The mean is then below 0 for every problem that is solved less than half
# of the time, which are those that MaxRL gives the most weight, and dividing by it turns all signs. Where exactly half
# are right the mean is 0 and the advantages are a million, so that such a group is the whole gradient of its batch.
# Where most are right the signs are as they should be, and the sizes are not. Nothing checks or warns. GRPO and RLOO
# take the same rewards as they are. SkyRL's SQL environment pays -1, 0 and 1. Such rewards have to be moved to 0 and 1
# before MaxRL sees them.
#
# Seen, on Python 3.11 without a GPU: groups of 8; the advantage of a right and of a wrong answer
#   right   maxrl, the environment's rewards     maxrl, 0 and 1      RLOO, the environment's rewards
#   1             -2.33          0.33             7.00   -1.00          2.00   -0.29
#   2             -3.00          1.00             3.00   -1.00          1.71   -0.57
#   3             -5.00          3.00             1.67   -1.00          1.43   -0.86
#   4        1000000.00   -1000000.00             1.00   -1.00          1.14   -1.14
#   5              3.00         -5.00             0.60   -1.00          0.86   -1.43
#   7              0.33         -2.33             0.14   -1.00          0.29   -2.00
# Fails when this changes.
set -euo pipefail
lock=$(cd "$(dirname "$0")/.." && pwd)/requirements/cpu.txt
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

pinned() { grep -oE "^$1==[^ ;\\]*" "$lock"; }
python3 -m venv env
env/bin/pip install -qq --no-deps --no-compile "$(pinned torch)"
env/bin/pip install -qq --no-compile -U setuptools filelock typing-extensions sympy networkx jinja2 fsspec \
    "$(pinned numpy)" loguru skyrl-gym==0.4.0
env/bin/pip install -qq --no-compile --no-deps --target peers skyrl==0.3.0

cat >ask.py <<'EOF'
import ast
from collections import defaultdict
from pathlib import Path

import numpy as np
import skyrl_gym
import torch

FILE = Path("peers/skyrl/backends/skyrl_train/utils/ppo_utils.py")


def load(name):
    """Of a module that needs Ray and more: the function of this name, without its decorators."""
    (found,) = [node for node in ast.parse(FILE.read_text("utf-8")).body if getattr(node, "name", None) == name]
    found.decorator_list = []
    given = dict(torch=torch, np=np, defaultdict=defaultdict)
    exec(compile(ast.Module([found], []), FILE, "exec"), given)
    return given[name]


def paid(answer):
    environment = skyrl_gym.make("aime", extras={"reward_model": {"method": "rule", "ground_truth": "42"}})
    return environment.step(f"We add them up.\nAnswer: {answer}")["reward"]


def advantages(estimator, rewards):
    column = torch.tensor(rewards).unsqueeze(1)
    found, _ = estimator(column, torch.ones_like(column), index=np.zeros(len(rewards)))
    return f"{found[0].item():.2f} {found[-1].item():.2f}"


maxrl, rloo = load("compute_maxrl_advantage"), load("compute_rloo_outcome_advantage")
for right in (1, 2, 3, 4, 5, 7):
    rewards = [paid(42)] * right + [paid(41)] * (8 - right)
    shifted = [(reward + 1) / 2 for reward in rewards]
    print(right, advantages(maxrl, rewards), "|", advantages(maxrl, shifted), "|", advantages(rloo, rewards))
EOF
env/bin/python -W ignore ask.py 2>ask.log | tee seen || { tail ask.log; exit 1; }
diff seen - <<'EOF' || { echo "changed"; exit 1; }
1 -2.33 0.33 | 7.00 -1.00 | 2.00 -0.29
2 -3.00 1.00 | 3.00 -1.00 | 1.71 -0.57
3 -5.00 3.00 | 1.67 -1.00 | 1.43 -0.86
4 1000000.00 -1000000.00 | 1.00 -1.00 | 1.14 -1.14
5 3.00 -5.00 | 0.60 -1.00 | 0.86 -1.43
7 0.33 -2.33 | 0.14 -1.00 | 0.29 -2.00
EOF
echo "as stated: SkyRL 0.3.0, skyrl-gym 0.4.0"
