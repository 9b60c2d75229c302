#!/usr/bin/env bash
# OpenRLHF 0.11.2: with GAE and lambd below 1, the tokens of a tool call are taught that the episode ends there, with
# nothing, though the critic knows that it ends well.
#
# What a tool or an environment says in between is not the policy's: action_mask is 0 there. get_advantages_and_returns
# multiplies values and rewards by the mask and goes through these tokens all the same. So the value after a call is 0,
# and what comes later reaches the call only through lambd to the power of the answer's length. A critic that is right
# everywhere has advantages of 0; here the call has minus its value, and the critic's own target before the call goes to
# 0, so that it learns the same. The better things stand, the harder calls are pushed down, and the longer a tool's
# answer is. With lambd 1, the default, and gamma 1 the sums come out right; gamma below 1 discounts by the tool's tokens
# too. verl steps over them. Whoever trains with tools has to keep both at 1, or to leave such tokens out of the sums.
#
# Seen, on Python 3.11 without a GPU: 100 tokens, a tool's answer, 100 tokens, reward 1 at the end, values of 1; the
# advantage of the call's last token and of the one 50 before it, and the critic's target for the last token
#   lambd   tool's answer   OpenRLHF: last  50 before  target   verl: last  50 before  target
#   1.00      100 tokens              0.00       0.00    1.00         0.00       0.00    1.00
#   0.99        1                    -0.01      -0.01    0.99         0.00       0.00    1.00
#   0.99      100                    -0.63      -0.38    0.37         0.00       0.00    1.00
#   0.99     1000                    -1.00      -0.60    0.00         0.00       0.00    1.00
#   0.95       10                    -0.40      -0.03    0.60         0.00       0.00    1.00
#   0.95      100                    -0.99      -0.08    0.01         0.00       0.00    1.00
# Fails when this changes.
set -euo pipefail
lock=$(cd "$(dirname "$0")/.." && pwd)/requirements/cpu.txt
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

python3 -m venv env
env/bin/pip install -qq --no-deps --no-compile "$(grep -oE '^torch==[^ ;\\]*' "$lock")"
env/bin/pip install -qq --no-compile -U setuptools filelock typing-extensions sympy networkx jinja2 fsspec
env/bin/pip install -qq --no-compile --no-deps --target peers openrlhf==0.11.2 verl==0.9.1

cat >ask.py <<'EOF'
import ast
from pathlib import Path
from types import SimpleNamespace
from typing import Any, List, Tuple

import torch


def load(file, name, **given):
    """Of a module of a package whose other modules need a GPU's packages: what has this name."""
    wanted = dict(Any=Any, List=List, Tuple=Tuple, torch=torch) | given
    for node in ast.parse(Path("peers", file).read_text(encoding="utf-8")).body:
        if getattr(node, "name", None) == name:
            node.decorator_list = []
            exec(compile(ast.Module([node], []), file, "exec"), wanted)
    return wanted[name]


maker = load(
    "openrlhf/trainer/ppo_utils/experience_maker.py", "RemoteExperienceMaker", Experience=Any, RayActorGroup=Any
)
openrlhf = object.__new__(maker).get_advantages_and_returns
unscaled = SimpleNamespace(masked_whiten=lambda advantages, mask: advantages)
verl = load("verl/trainer/ppo/core_algos.py", "compute_gae_advantage_return", verl_F=unscaled)

TURN = 100
for lambd, answer in ((1.0, 100), (0.99, 1), (0.99, 100), (0.99, 1000), (0.95, 10), (0.95, 100)):
    mask = torch.tensor([[1.0] * TURN + [0.0] * answer + [1.0] * TURN])
    values, rewards = torch.ones_like(mask), torch.zeros_like(mask)
    rewards[0, -1] = 1.0
    cells = []
    for advantages, targets in (openrlhf(values, rewards, mask, 1.0, lambd), verl(rewards, values, mask, 1.0, lambd)):
        shown = (advantages[0, TURN - 1], advantages[0, TURN - 51], targets[0, TURN - 1])
        cells += [f"{round(value.item(), 2) + 0.0:6.2f}" for value in shown]
    print(f"{lambd:.2f} {answer:>5}", *cells)
EOF
env/bin/python -W ignore ask.py 2>ask.log | tee seen || { tail ask.log; exit 1; }
diff seen - <<'EOF' || { echo "changed"; exit 1; }
1.00   100   0.00   0.00   1.00   0.00   0.00   1.00
0.99     1  -0.01  -0.01   0.99   0.00   0.00   1.00
0.99   100  -0.63  -0.38   0.37   0.00   0.00   1.00
0.99  1000  -1.00  -0.60   0.00   0.00   0.00   1.00
0.95    10  -0.40  -0.03   0.60   0.00   0.00   1.00
0.95   100  -0.99  -0.08   0.01   0.00   0.00   1.00
EOF
echo "as stated: OpenRLHF 0.11.2, verl 0.9.1"
