#!/usr/bin/env bash
# ms-swift 4.6.0: past the maximum length the reward "cosine" goes back up, so that a right answer of twice the length
# is paid as if it had none, and "soft_overlong" has no end.
#
# Both are made for an answer that is at most as long as cosine_max_len and soft_max_length, which are
# max_completion_length unless they are set, and neither looks whether it is. In training with several turns they count
# the tokens of all turns, and max_completion_length holds for one turn (completion_length_limit_scope per_round, the
# default). A cosine comes back after its half period: of right answers those of two limits get as much as the shortest,
# and of wrong ones as little. DAPO's penalty stops at -1, what a right answer can make up for; here an answer of three
# limits loses 11, so that in its group length alone decides. A cosine_max_len below the limit does the same with one
# turn. Nothing warns. TRL has both rewards, with the bounds.
#
# Seen, on Python 3.11 without a model: limits of 1,000 tokens, a soft_cache_length of 200, the other values as by
# default; turns of 1,000 tokens, the last as long as is left
#   tokens                       500     900    1000    1500    2000    3000
#   "cosine", right             0.75    0.51    0.50    0.75    1.00    0.50
#     with the bound            0.75    0.51    0.50    0.50    0.50    0.50
#   "cosine", wrong            -0.25   -0.01    0.00   -0.25   -0.50    0.00
#     with the bound           -0.25   -0.01    0.00    0.00    0.00    0.00
#   "soft_overlong"             0.00   -0.50   -1.00   -3.50   -6.00  -11.00
#     with the bound            0.00   -0.50   -1.00   -1.00   -1.00   -1.00
# Fails when this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

python3 -m venv env
env/bin/pip install -qq --no-compile --no-deps --target peers ms-swift==4.6.0

cat >ask.py <<'EOF'
import ast
import math
from pathlib import Path
from types import SimpleNamespace
from typing import List, Optional, Union

FILE = Path("peers/swift/rewards/orm.py")  # whose package needs more than is installed here
given = dict(List=List, Optional=Optional, Union=Union)
for node in ast.parse(FILE.read_text(encoding="utf-8")).body:
    if getattr(node, "name", None) in ("ORM", "CosineReward", "SoftOverlong"):
        exec(compile(ast.Module([node], []), FILE, "exec"), given)

LIMIT, CACHE = 1000, 200
args = SimpleNamespace(
    cosine_min_len_value_wrong=-0.5,
    cosine_max_len_value_wrong=0.0,
    cosine_min_len_value_correct=1.0,
    cosine_max_len_value_correct=0.5,
    cosine_max_len=LIMIT,
    soft_max_length=LIMIT,
    soft_cache_length=CACHE,
)
LENGTHS = (500, 900, 1000, 1500, 2000, 3000)
turns = [[[1] * min(LIMIT, length - start) for start in range(0, length, LIMIT)] for length in LENGTHS]


def show(name, values):
    print(name, *(f"{value + 0.0:.2f}" for value in values))


def cosine(right):
    reward = given["CosineReward"](args, accuracy_orm=lambda completions, solution, **others: [right] * len(turns))
    return reward(completions=[""] * len(turns), solution=[""] * len(turns), response_token_ids=turns)


def bounded(length, short, long):
    return long + (short - long) * (1 + math.cos(min(length / LIMIT, 1.0) * math.pi)) / 2


show("right", cosine(1.0))
show("right, bounded", (bounded(length, 1.0, 0.5) for length in LENGTHS))
show("wrong", cosine(0.0))
show("wrong, bounded", (bounded(length, -0.5, 0.0) for length in LENGTHS))
show("soft_overlong", given["SoftOverlong"](args)(completions=[""] * len(turns), response_token_ids=turns))
show("DAPO's", (max(-1.0, min(0.0, (LIMIT - CACHE - length) / CACHE)) for length in LENGTHS))
EOF
env/bin/python -W ignore ask.py 2>ask.log | tee seen || { tail ask.log; exit 1; }
diff seen - <<'EOF' || { echo "changed"; exit 1; }
right 0.75 0.51 0.50 0.75 1.00 0.50
right, bounded 0.75 0.51 0.50 0.50 0.50 0.50
wrong -0.25 -0.01 0.00 -0.25 -0.50 0.00
wrong, bounded -0.25 -0.01 0.00 0.00 0.00 0.00
soft_overlong 0.00 -0.50 -1.00 -3.50 -6.00 -11.00
DAPO's 0.00 -0.50 -1.00 -1.00 -1.00 -1.00
EOF
echo "as stated: ms-swift 4.6.0"
