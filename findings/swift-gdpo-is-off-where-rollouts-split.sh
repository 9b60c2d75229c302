#!/usr/bin/env bash
# ms-swift 4.6.0: scale_rewards "gdpo" is "none" in every batch in which a rollout came back as more samples than were
# asked for, so that the reward with the largest numbers is all that counts.
#
# GDPO is for rewards of several kinds: each is normalized in its group before they are added. There are two functions
# for advantages. The second one is for rollouts of several turns that are split into several samples, and is taken for
# a whole batch as soon as one is. It knows "group" and "batch". Anything else goes without normalization, "gdpo" too:
# the rewards are added as they are and the group's mean is taken off. A reward in tokens or in seconds beside one of 0
# and 1 then decides alone, and advantages are hundreds in the place of one, in some batches of a run and not in others.
# max_grad_norm hides the size, and nothing the direction. A warning says that later versions take no split rollouts,
# and not that the setting is off.
#
# Seen, on Python 3.11 without a GPU: two groups of eight, half of each right, a reward of 0 and 1 and one of minus the
# tokens; the advantages of three answers of the first group
#   scale_rewards               wrong, 100 tokens    right, 800 tokens    right, 200 tokens
#   gdpo                                     0.30                -0.17                 1.47
#   gdpo, with split rollouts              374.50              -324.50               275.50
#   group                                    1.33                -1.15                 0.98
#   group, with split rollouts               1.33                -1.15                 0.98
#   none                                   374.50              -324.50               275.50
#   none, with split rollouts              374.50              -324.50               275.50
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
env/bin/pip install -qq --no-compile --no-deps --target peers ms-swift==4.6.0

cat >ask.py <<'EOF'
import ast
from pathlib import Path
from typing import Dict, List, Optional, Tuple, Union

import torch

given = dict(torch=torch, Dict=Dict, List=List, Optional=Optional, Tuple=Tuple, Union=Union)


def load(file, *names):
    """Of a module of a package whose other modules need more than is installed here: what has these names."""
    for node in ast.parse(Path("peers/swift", file).read_text(encoding="utf-8")).body:
        if getattr(node, "name", None) in names:
            exec(compile(ast.Module([node], []), file, "exec"), given)


load("utils/torch_utils.py", "nanstd")
load("rl_core/advantage.py", "compute_advantages", "compute_advantages_dynamic")
SIZE = 8
right = torch.tensor([0.0, 0, 0, 0, 1, 1, 1, 1] * 2)
tokens = torch.tensor([300.0, 900, 500, 100, 800, 200, 600, 400] * 2)
rewards, weights = torch.stack([right, -tokens], dim=1), torch.ones(2)
prompts = [str(answer // SIZE) for answer in range(len(right))]
requests = [str(answer) for answer in range(len(right))]  # each rollout is one sample: both functions see the same


def show(name, scale, advantages):
    print(name, scale, *(f"{advantages[answer]:.2f}" for answer in (3, 4, 5)))


for scale in ("gdpo", "group", "none"):
    show("grouped", scale, given["compute_advantages"](rewards, weights, SIZE, scale_rewards=scale)[0])
    dynamic = given["compute_advantages_dynamic"](rewards, weights, prompts, requests, scale_rewards=scale)
    show("dynamic", scale, dynamic[0])
EOF
env/bin/python -W ignore ask.py 2>ask.log | tee seen || { tail ask.log; exit 1; }
diff seen - <<'EOF' || { echo "changed"; exit 1; }
grouped gdpo 0.30 -0.17 1.47
dynamic gdpo 374.50 -324.50 275.50
grouped group 1.33 -1.15 0.98
dynamic group 1.33 -1.15 0.98
grouped none 374.50 -324.50 275.50
dynamic none 374.50 -324.50 275.50
EOF
echo "as stated: ms-swift 4.6.0"
