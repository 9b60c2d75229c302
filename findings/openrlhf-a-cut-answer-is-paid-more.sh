#!/usr/bin/env bash
# OpenRLHF 0.11.2: --reward.stop_properly_penalty_coef, the penalty for an answer that ran into the limit, is a bonus
# for a wrong one where rewards go below 0, and it takes the penalty for length away.
#
# From 0 to 1 the coefficient multiplies the reward of an answer that was cut. A reward of -1 becomes -0.5, or 0: of two
# wrong answers the one that never ends is paid more, and in a group that is all wrong it is the one to learn. Rewards
# of -1 and 1 are one way to get there. The other needs no such rewards: --reward.overlong_buffer_len is taken off
# first, and the docstring says that both can be used at once. An answer that was cut has then had the whole penalty for
# length, and the product takes part or all of it back, while one that ended just before the limit keeps it. So the
# model learns to run on once it is near the limit. The log counts the answers that were penalized. Where the
# coefficient is below 0 it is the reward of a cut answer itself, and that is right with both, if it is lower than what
# a wrong answer gets.
#
# Seen, on Python 3.11 without a model: a limit of 1,000 tokens; the reward by coefficient, and in the group of the
# first three the advantage (reward less mean) with a coefficient of 0
#                                          none      1.0      0.5      0.0     -2.0    advantage
#   rewards -1 and 1
#     wrong, 500 tokens                    -1.00    -1.00    -1.00    -1.00    -1.00        -0.33
#     wrong, 980 tokens                    -1.00    -1.00    -1.00    -1.00    -1.00        -0.33
#     wrong, cut at 1,000                  -1.00    -1.00    -0.50     0.00    -2.00         0.67
#     right, cut at 1,000                   1.00     1.00     0.50     0.00    -2.00
#   rewards 0 and 1, overlong_buffer_len 200
#     wrong, 900 tokens                    -0.50    -0.50    -0.50    -0.50    -0.50        -0.03
#     wrong, 980 tokens                    -0.90    -0.90    -0.90    -0.90    -0.90        -0.43
#     wrong, cut at 1,000                  -1.00    -1.00    -0.50     0.00    -2.00         0.47
#     right, cut at 1,000                   0.00     0.00     0.00     0.00    -2.00
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
env/bin/pip install -qq --no-compile --no-deps --target peers openrlhf==0.11.2

cat >ask.py <<'EOF'
import ast
from pathlib import Path
from types import SimpleNamespace
from typing import List

import torch

FILE = Path("peers/openrlhf/trainer/ppo_utils/length_penalty.py")  # whose package needs Ray and more
given = dict(List=List, logger=SimpleNamespace(info=lambda text: None))
for node in ast.parse(FILE.read_text(encoding="utf-8")).body:
    if isinstance(node, ast.FunctionDef):
        exec(compile(ast.Module([node], []), FILE, "exec"), given)

LIMIT = 1000


def paid(rewards, lengths, buffer, coefficient):
    """The rewards after both penalties; an answer as long as the limit was cut."""
    answers = SimpleNamespace(
        rewards=torch.tensor(rewards),
        response_length=torch.tensor(lengths),
        truncated=torch.tensor([length == LIMIT for length in lengths]),
        info={},
    )
    own = SimpleNamespace(
        overlong_buffer_len=buffer, overlong_penalty_factor=1.0, stop_properly_penalty_coef=coefficient
    )
    args = SimpleNamespace(reward=own, rollout=SimpleNamespace(max_new_tokens=LIMIT))
    given["apply_length_penalties"]([answers], args)
    return answers.rewards


for wrong, lengths, buffer in ((-1.0, (500, 980, 1000, 1000), None), (0.0, (900, 980, 1000, 1000), 200.0)):
    rewards = [wrong] * 3 + [1.0]
    columns = [paid(rewards, lengths, buffer, coefficient) for coefficient in (None, 1.0, 0.5, 0.0, -2.0)]
    group = columns[3][:3]
    advantages = [f"{advantage:.2f}" for advantage in (group - group.mean()).tolist()] + [""]
    for row, advantage in enumerate(advantages):
        cells = (f"{column[row].item() + 0.0:.2f}" for column in columns)
        print(" ".join(("right" if row == 3 else "wrong", str(lengths[row]), *cells, advantage)).rstrip())
EOF
env/bin/python -W ignore ask.py 2>ask.log | tee seen || { tail ask.log; exit 1; }
diff seen - <<'EOF' || { echo "changed"; exit 1; }
wrong 500 -1.00 -1.00 -1.00 -1.00 -1.00 -0.33
wrong 980 -1.00 -1.00 -1.00 -1.00 -1.00 -0.33
wrong 1000 -1.00 -1.00 -0.50 0.00 -2.00 0.67
right 1000 1.00 1.00 0.50 0.00 -2.00
wrong 900 -0.50 -0.50 -0.50 -0.50 -0.50 -0.03
wrong 980 -0.90 -0.90 -0.90 -0.90 -0.90 -0.43
wrong 1000 -1.00 -1.00 -0.50 0.00 -2.00 0.47
right 1000 0.00 0.00 0.00 0.00 -2.00
EOF
echo "as stated: OpenRLHF 0.11.2"
