#!/usr/bin/env bash
# verl 0.9.1: best@N in the validation figures is not pass@N. N answers are drawn with replacement from the N that there
# are, so that a problem that one answer in eight solves counts as solved by 66%.
#
# An answer that is drawn twice leaves another one out. best@N, which at the largest N is one of the figures that the
# log puts first (val-core), is too low, and by most for problems that are solved seldom, for which one looks at it.
# worst@N, whether all answers are right, is too high for those that are solved often. maj@N is not the vote of the N
# answers, but the mean of votes of which each lacks a third of them. So verl's figures are not those of another tool or
# a paper from the same answers. Nor are they those of verl itself with more answers: from 64, best@8 is 3 points below
# pass@8 and not 34. A policy that solves the same problems more often rises in best@N, where pass@N stays. The
# docstring speaks of bootstrap samples. Without bias is 1 - C(n - c, N) / C(n, N), for n answers with c right.
#
# Seen, on Python 3.11, without a model: validation figures of 20 problems in % (pass@8, all and vote: computed here)
#   answers  right   best@8  pass@8   worst@8  all 8 right   maj@8  the vote
#      8       1        66     100        0         0           1       0
#      8       2        90     100        0         0           7       0
#      8       5       100     100        2         0          76     100
#      8       7       100     100       34         0          99     100
#     16       2        66      77        0         0
#     64       8        65      68        0         0
# Fails when this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

python3 -m venv env
env/bin/pip install -qq --no-compile numpy==2.3.5
env/bin/pip install -qq --no-compile --no-deps --target peers verl==0.9.1

cat >ask.py <<'EOF'
import ast
from collections import Counter, defaultdict
from functools import partial
from math import comb
from pathlib import Path
from typing import Any, Callable

import numpy as np

FILE = Path("peers/verl/trainer/ppo/metric_utils.py")  # whose other imports need a GPU's packages
PROBLEMS = 20

given = dict(np=np, Any=Any, Callable=Callable, defaultdict=defaultdict, partial=partial)
for node in ast.parse(FILE.read_text(encoding="utf-8")).body:
    if getattr(node, "name", None) in ("bootstrap_metric", "calc_maj_val", "process_validation_metrics"):
        node.decorator_list = []
        exec(compile(ast.Module([node], []), FILE, "exec"), given)

for answers, right in ((8, 1), (8, 2), (8, 5), (8, 7), (16, 2), (64, 8)):
    order = np.random.default_rng(0)
    rows = [order.permutation([1.0] * right + [0.0] * (answers - right)).tolist() for _ in range(PROBLEMS)]
    rewards = [reward for row in rows for reward in row]
    problems = [str(problem) for problem in range(PROBLEMS) for _ in range(answers)]
    said = ["7" if reward else "8" for reward in rewards]
    figures = given["process_validation_metrics"](["math"] * len(said), problems, {"acc": rewards, "pred": said})
    best, worst, vote = (round(100 * figures["math"]["acc"][f"{name}@8/mean"]) for name in ("best", "worst", "maj"))
    passed = round(100 - 100 * comb(answers - right, 8) / comb(answers, 8))
    every = round(100 * comb(right, 8) / comb(answers, 8))
    shown = f"{right} of {answers}: best@8 {best}, pass@8 {passed}, worst@8 {worst}, all {every}"
    if answers == 8:
        ((winner, _),) = Counter(said[:answers]).most_common(1)
        shown += f", maj@8 {vote}, the vote {100 * (winner == '7')}"
    print(shown)
EOF
env/bin/python -W ignore ask.py 2>ask.log | tee seen || { tail ask.log; exit 1; }
diff seen - <<'EOF' || { echo "changed"; exit 1; }
1 of 8: best@8 66, pass@8 100, worst@8 0, all 0, maj@8 1, the vote 0
2 of 8: best@8 90, pass@8 100, worst@8 0, all 0, maj@8 7, the vote 0
5 of 8: best@8 100, pass@8 100, worst@8 2, all 0, maj@8 76, the vote 100
7 of 8: best@8 100, pass@8 100, worst@8 34, all 0, maj@8 99, the vote 100
2 of 16: best@8 66, pass@8 77, worst@8 0, all 0
8 of 64: best@8 65, pass@8 68, worst@8 0, all 0
EOF
echo "as stated: verl 0.9.1"
