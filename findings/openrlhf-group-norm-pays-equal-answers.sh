#!/usr/bin/env bash
# OpenRLHF 0.11.2: with group_norm, its GRPO, a group in which every answer has the same reward, of which there is
# nothing to learn, has the largest advantage of the batch.
#
# The advantage is (reward - mean) / (std + 1e-9). The mean of eight times 0.9 in float32 is off in the last digit, by
# 6e-8, and the std comes out as exactly 0: the quotient is -60, for all eight answers. The clip of rewards, which comes
# after it, leaves -10, where a group of right and wrong answers has -0.94 and 0.94. So each answer of that group is
# pushed down with ten times the force, and with 0.7 up. Rewards of 0 and 1 have no such digit, nor have groups of four;
# shares of unit tests, a part for the format and penalties for length have. The log says group_reward_std 0 for
# the group. verl adds 1e-6 to the std, and the same digit has 0.06. Whoever trains on other rewards than 0 and 1 takes
# groups without a spread out of the batch, or makes the rewards multiples of 1/64.
#
# Seen, on Python 3.11 without a GPU: one batch, four groups of eight; each group's first and last answer's advantage
#                          all 0.9         all 0.7         all 1.0         four 0, four 1
#   OpenRLHF           -10.00 -10.00    10.00  10.00     0.00   0.00    -0.94   0.94
#   without the clip   -59.60 -59.60    59.60  59.60     0.00   0.00    -0.94   0.94
#   verl                -0.06  -0.06     0.06   0.06     0.00   0.00    -0.94   0.94
#   of nine groups, one all 0.1 and so on to 0.9, have more than 0.94: of 4 answers 0, of 6 3, of 8 8, of 16 8
# Fails when this changes.
set -euo pipefail
lock=$(cd "$(dirname "$0")/.." && pwd)/requirements/cpu.txt
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

python3 -m venv env
env/bin/pip install -qq --no-deps --no-compile "$(grep -oE '^torch==[^ ;\\]*' "$lock")"
env/bin/pip install -qq --no-compile -U setuptools filelock typing-extensions sympy networkx jinja2 fsspec numpy
env/bin/pip install -qq --no-compile --no-deps --target peers openrlhf==0.11.2 verl==0.9.1

cat >ask.py <<'EOF'
import ast
import itertools
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, List, Optional, Tuple, Union

import numpy as np
import torch

PLAIN = dict(Any=Any, List=List, Optional=Optional, Tuple=Tuple, Union=Union, torch=torch, np=np)


def load(file, *names, **given):
    """Of a module of a package whose other modules need a GPU's packages: what has these names."""
    wanted = PLAIN | given
    for node in ast.parse(Path("peers", file).read_text(encoding="utf-8")).body:
        if getattr(node, "name", None) in names:
            node.decorator_list = []
            exec(compile(ast.Module([node], []), file, "exec"), wanted)
    return [wanted[name] for name in names]


(shaped,) = load("openrlhf/models/utils.py", "compute_reward")
unused = dict.fromkeys(("Experience", "RayActorGroup"), Any) | {"itertools": itertools, "compute_reward": shaped}
(Maker,) = load(
    "openrlhf/trainer/ppo_utils/experience_maker.py",
    "RemoteExperienceMaker",
    apply_length_penalties=lambda experiences, args: None,
    **unused,
)
core = dict(defaultdict=defaultdict, AlgoConfig=Any)
(verl_grpo,) = load("verl/trainer/ppo/core_algos.py", "compute_grpo_outcome_advantage", **core)


def openrlhf(rewards, clip):
    """The advantage of each answer; `clip` is --reward.clip_range, by default (-10, 10)."""
    own = SimpleNamespace(estimator="group_norm", gamma=1.0, lambd=1.0, no_std_norm=False)
    args = SimpleNamespace(
        rollout=SimpleNamespace(n_samples_per_prompt=rewards.size(1)),
        algo=SimpleNamespace(advantage=own),
        reward=SimpleNamespace(clip_range=clip),
    )
    maker = object.__new__(Maker)
    maker.strategy, maker.kl_ctl = SimpleNamespace(args=args), SimpleNamespace(value=0.0)
    maker.advantage_estimator = own.estimator
    count = rewards.numel()
    one = SimpleNamespace(rewards=rewards.flatten(), index=list(range(count)), info={}, values=None)
    one.kl, one.action_mask = torch.zeros(count, 3), torch.ones(count, 3)
    maker.compute_advantages_and_returns([one])
    if clip:
        print("its group_reward_std", *(f"{std:.2f}" for std in one.info["group_reward_std"][:: rewards.size(1)]))
    return one.advantages[:, 0].reshape(rewards.shape)


def verl(rewards):
    groups = np.arange(len(rewards)).repeat(rewards.size(1))
    return verl_grpo(rewards.reshape(-1, 1).clone(), torch.ones(rewards.numel(), 1), groups)[0].reshape(rewards.shape)


def show(name, advantages):
    """Of each group the first answer's and the last one's."""
    cells = ("{:8.2f} {:6.2f}".format(*(row[place].item() + 0.0 for place in (0, -1))) for row in advantages)
    print(f"{name:<17}", *cells)


LEFT, RIGHT = [0.0] * 4, [1.0] * 4
batch = torch.tensor([[0.9] * 8, [0.7] * 8, [1.0] * 8, LEFT + RIGHT])
show("OpenRLHF", openrlhf(batch, (-10, 10)))
show("without the clip", openrlhf(batch, None))
show("verl", verl(batch))
tenths = torch.arange(1, 10) / 10
for size in (4, 6, 8, 16):
    found = openrlhf(tenths.reshape(-1, 1).repeat(1, size), None)[:, 0]
    print(f"groups of {size}, all equal, with more than 0.94: {int((found.abs() > 0.94).sum())} of 9")
EOF
env/bin/python -W ignore ask.py 2>ask.log | tee seen || { tail ask.log; exit 1; }
diff seen - <<'EOF' || { echo "changed"; exit 1; }
its group_reward_std 0.00 0.00 0.00 0.53
OpenRLHF            -10.00 -10.00    10.00  10.00     0.00   0.00    -0.94   0.94
without the clip    -59.60 -59.60    59.60  59.60     0.00   0.00    -0.94   0.94
verl                 -0.06  -0.06     0.06   0.06     0.00   0.00    -0.94   0.94
groups of 4, all equal, with more than 0.94: 0 of 9
groups of 6, all equal, with more than 0.94: 3 of 9
groups of 8, all equal, with more than 0.94: 8 of 9
groups of 16, all equal, with more than 0.94: 8 of 9
EOF
echo "as stated: OpenRLHF 0.11.2, verl 0.9.1"
