#!/usr/bin/env bash
# verl 0.9.1 (reinforce_plus_plus_baseline, gdpo) and OpenRLHF 0.11.2 (reinforce_baseline): where wrong answers are
# longer than right ones, a group in which every answer is wrong is pushed up, and one in which every answer is right is
# pushed down.
#
# Each group's mean is taken off first, so that a group of equal rewards has an advantage of 0: there is nothing to
# learn from it. Then the batch is normalized, and the mean that is taken off there is one over tokens. A long answer
# counts with each of its tokens. Over answers the mean was 0; over tokens it is below 0 where wrong answers are longer,
# as they are in most runs, and taking it off adds as much to every answer of the batch. So every group that is solved
# always or never gets a gradient, by what other groups' lengths happen to be. The right answers of a mixed group get
# more than the wrong ones lose. Where right answers are longer all signs are the other way round. With answers of one
# length, as a test has them, nothing is to be seen. The log shows a mean advantage of 0, since it is over tokens too.
# grpo, rloo and OpenRLHF's group_norm do not normalize the batch. Dividing by the batch's std alone would keep the
# zeros.
#
# Seen, on Python 3.11 without a GPU: three groups of eight, with none, four and eight right; the advantages (the three
# estimators named above agree in all of them)
#   tokens: right  wrong   all wrong   half right: right  wrong   all right     grpo: all wrong  right  wrong  all right
#             100    100        0.00                1.73  -1.73        0.00                0.00   0.94  -0.94       0.00
#             100    200        0.20                1.96  -1.57        0.20                0.00   0.94  -0.94       0.00
#             100    400        0.37                2.22  -1.48        0.37                0.00   0.94  -0.94       0.00
#             400    100       -0.37                1.48  -2.22       -0.37                0.00   0.94  -0.94       0.00
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
    "$(pinned numpy)"
env/bin/pip install -qq --no-compile --no-deps --target peers verl==0.9.1 openrlhf==0.11.2

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


*_, whiten = load("verl/utils/torch_functional.py", "masked_sum", "masked_mean", "masked_var", "masked_whiten")
core = dict(defaultdict=defaultdict, AlgoConfig=Any, verl_F=SimpleNamespace(masked_whiten=whiten))
baseline, grpo, gdpo = load(
    "verl/trainer/ppo/core_algos.py",
    "compute_reinforce_plus_plus_baseline_outcome_advantage",
    "compute_grpo_outcome_advantage",
    "compute_gdpo_outcome_advantage",
    **core,
)
(shaped,) = load("openrlhf/models/utils.py", "compute_reward")
unused = dict.fromkeys(("Experience", "RayActorGroup"), Any) | {"itertools": itertools, "compute_reward": shaped}
(Maker,) = load(
    "openrlhf/trainer/ppo_utils/experience_maker.py",
    "RemoteExperienceMaker",
    apply_length_penalties=lambda experiences, args: None,
    **unused,
)
SIZE = 8


def openrlhf(rewards, mask):
    own = SimpleNamespace(estimator="reinforce_baseline", gamma=1.0, lambd=1.0, no_std_norm=False)
    args = SimpleNamespace(
        rollout=SimpleNamespace(n_samples_per_prompt=SIZE),
        algo=SimpleNamespace(advantage=own),
        reward=SimpleNamespace(clip_range=(-10, 10)),
    )
    maker = object.__new__(Maker)
    maker.strategy, maker.kl_ctl = SimpleNamespace(args=args), SimpleNamespace(value=0.0)
    maker.advantage_estimator = own.estimator
    one = SimpleNamespace(rewards=rewards, index=list(range(len(rewards))), info={}, values=None)
    one.kl, one.action_mask = torch.zeros_like(mask), mask
    maker.compute_advantages_and_returns([one])
    return one.advantages


def verl(estimator):
    def ask(rewards, mask):
        last = torch.zeros_like(mask)
        last[torch.arange(len(mask)), mask.sum(1).long() - 1] = rewards
        return estimator(last, mask, np.arange(len(rewards)) // SIZE)[0]

    return ask


GROUPS = (0, 4, 8)  # right answers of eight
OF_EACH = (0, 8, 15, 16)  # an answer of the first group, a right and a wrong one of the second, one of the third
asked = {"verl's": verl(baseline), "gdpo": verl(gdpo), "OpenRLHF's": openrlhf, "grpo": verl(grpo)}
rewards = torch.cat([(torch.arange(SIZE) < right).float() for right in GROUPS])
for right, wrong in ((100, 100), (100, 200), (100, 400), (400, 100)):
    mask = (torch.arange(400) < torch.where(rewards > 0, right, wrong)[:, None]).float()
    for name, ask in asked.items():
        first = ask(rewards, mask)[:, 0]
        print(right, wrong, name, *(f"{first[answer].item() + 0.0:.2f}" for answer in OF_EACH))
EOF
env/bin/python -W ignore ask.py 2>ask.log | tee seen || { tail ask.log; exit 1; }
diff seen - <<'EOF' || { echo "changed"; exit 1; }
100 100 verl's 0.00 1.73 -1.73 0.00
100 100 gdpo 0.00 1.73 -1.73 0.00
100 100 OpenRLHF's 0.00 1.73 -1.73 0.00
100 100 grpo 0.00 0.94 -0.94 0.00
100 200 verl's 0.20 1.96 -1.57 0.20
100 200 gdpo 0.20 1.96 -1.57 0.20
100 200 OpenRLHF's 0.20 1.96 -1.57 0.20
100 200 grpo 0.00 0.94 -0.94 0.00
100 400 verl's 0.37 2.22 -1.48 0.37
100 400 gdpo 0.37 2.22 -1.48 0.37
100 400 OpenRLHF's 0.37 2.22 -1.48 0.37
100 400 grpo 0.00 0.94 -0.94 0.00
400 100 verl's -0.37 1.48 -2.22 -0.37
400 100 gdpo -0.37 1.48 -2.22 -0.37
400 100 OpenRLHF's -0.37 1.48 -2.22 -0.37
400 100 grpo 0.00 0.94 -0.94 0.00
EOF
echo "as stated: verl 0.9.1, OpenRLHF 0.11.2"
