#!/usr/bin/env bash
# inspect-ai 0.3.285: `match(numeric=True)` compares five significant digits, so that 100004 is right where the answer
# is 100000.
#
# The scorer formats the target and the number in the answer with ".5g" and compares the texts. The documentation says
# that numbers are normalized before they are compared, and not that they are rounded. Of whole numbers of six digits an
# answer that is off by one is right nine times in ten, and so is one of seven digits that is off by ten. location "any"
# does the same. So a benchmark of arithmetic, of counts or of money is kinder the larger its numbers are, and the log
# does not show it: the answer in it is the rounded one. Without numeric the end of the text is compared, and 25 is
# right for 5. Whoever needs whole numbers to be whole numbers needs a scorer of their own.
#
# Seen, on Python 3.11, without a model; answers that are taken for the target's
#                                            numeric   numeric, anywhere   as text
#   12346 for 12345                          0         0                   0
#   100004 for 100000                        1         1                   0
#   271829 for 271828                        1         1                   0
#   3.141594 for 3.141592                    1         1                   0
#   25 for 5                                 0         0                   1
#   300 products of two numbers of three digits
#     right                                  300       300                 300
#     off by 1                               274       274                 0
#     off by 10                              14        14                  0
# Fails when this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

python3 -m venv env
env/bin/pip install -qq --no-compile inspect-ai==0.3.285
env/bin/pip list 2>/dev/null | grep -E '^inspect'

cat >ask.py <<'EOF'
import asyncio

from inspect_ai.model import ModelOutput
from inspect_ai.scorer import CORRECT, Target, match
from inspect_ai.solver import TaskState

SCORERS = {"numeric": match(numeric=True), "anywhere": match(numeric=True, location="any"), "text": match()}


def correct(scorer, answer, target):
    output = ModelOutput.from_content("mockllm/model", f"The answer is {answer}")
    state = TaskState(model="mockllm/model", sample_id=1, epoch=1, input="", messages=[], output=output)
    return asyncio.run(scorer(state, Target(str(target)))).value == CORRECT


products = [first * second for first in range(317, 347) for second in range(331, 341)]
PAIRS = {
    "12346 for 12345": [(12346, 12345)],
    "100004 for 100000": [(100004, 100000)],
    "271829 for 271828": [(271829, 271828)],
    "3.141594 for 3.141592": [("3.141594", "3.141592")],
    "25 for 5": [(25, 5)],
    "300 products, right": [(product, product) for product in products],
    "300 products, off by 1": [(product + 1, product) for product in products],
    "300 products, off by 10": [(product + 10, product) for product in products],
}
for what, pairs in PAIRS.items():
    counts = [f"{name} {sum(correct(scorer, *pair) for pair in pairs)}" for name, scorer in SCORERS.items()]
    print(f"{what}: of {len(pairs)} {', '.join(counts)}")
EOF
export HOME="$folder"
env/bin/python -W ignore ask.py 2>ask.log | tee seen || { tail ask.log; exit 1; }
diff seen - <<'EOF' || { echo "changed"; tail ask.log; exit 1; }
12346 for 12345: of 1 numeric 0, anywhere 0, text 0
100004 for 100000: of 1 numeric 1, anywhere 1, text 0
271829 for 271828: of 1 numeric 1, anywhere 1, text 0
3.141594 for 3.141592: of 1 numeric 1, anywhere 1, text 0
25 for 5: of 1 numeric 0, anywhere 0, text 1
300 products, right: of 300 numeric 300, anywhere 300, text 300
300 products, off by 1: of 300 numeric 274, anywhere 274, text 0
300 products, off by 10: of 300 numeric 14, anywhere 14, text 0
EOF
echo "as stated: inspect-ai 0.3.285"
