#!/usr/bin/env bash
# verl 0.9.1 (prime_math) and OpenRLHF 0.11.2 (grade_answer): as the answer of a maths problem the point (3, 250) is the
# number 3250, and the interval [5, 100) is (5, 100].
#
# Both have the same grader at heart. Before it splits an answer at its commas, it takes out those that stand in large
# numbers: a digit, a comma, three digits. A pair whose second number has three digits is then one number in brackets,
# and where there is one element nobody looks at the brackets. So the reward for a point, an interval or a triple is paid
# for its digits, with any brackets and with none, and the other way round: where the answer is 3250, a pair is right.
# Pairs with a second number of one or two digits are graded as they should be, so that a test with such says nothing.
# With a blank after the comma verl is right, since it keeps the blank. verl takes prime_math for NuminaMath's sources.
# Whoever trains on such answers has to compare the count of commas and the brackets before the grader is asked.
#
# Seen, on Python 3.11, without a model; whether the answer is right
#   the solution   the answer   verl    OpenRLHF
#   (3,250)        3250         True    True
#   (3, 250)       3250         False   True
#   (3,250)        3251         False   False
#   (3,25)         325          False   False
#   3250           (3,250)      True    True
#   [5,100)        (5,100]      True    True
#   [5,99)         (5,99]       False   False
#   (-1,500)       -1500        True    True
#   (0.5,100)      0.51         True    True
#   (1,200,300)    1200300      True    True
#   of 100 points (3,50) to (3,149), paid for their digits without brackets: verl 50, OpenRLHF 50
# Fails when this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

python3 -m venv env
env/bin/pip install -qq --no-compile sympy==1.14.0 pylatexenc==2.10
env/bin/pip install -qq --no-compile --no-deps --target peers openrlhf==0.11.2 verl==0.9.1

cat >ask.py <<'EOF'
import sys
from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType

for name in ("verl", "verl.utils", "verl.utils.reward_score"):  # whose own files need a GPU's packages
    sys.modules[name] = ModuleType(name)
    sys.modules[name].__path__ = ["peers/" + name.replace(".", "/")]
limits = sys.modules["verl.utils.py_functional"] = ModuleType("verl.utils.py_functional")
limits.timeout_limit = lambda **seconds: lambda function: function

from verl.utils.reward_score import prime_math

spec = spec_from_file_location("math_utils", "peers/openrlhf/utils/math_utils.py")
openrlhf = module_from_spec(spec)
spec.loader.exec_module(openrlhf)


def verl(answer, solution):
    return bool(prime_math.compute_score(f"So the answer is \\boxed{{{answer}}}", solution)[0])


for solution, answer in [
    ("(3,250)", "3250"),
    ("(3, 250)", "3250"),
    ("(3,250)", "3251"),
    ("(3,25)", "325"),
    ("3250", "(3,250)"),
    ("[5,100)", "(5,100]"),
    ("[5,99)", "(5,99]"),
    ("(-1,500)", "-1500"),
    ("(0.5,100)", "0.51"),
    ("(1,200,300)", "1200300"),
]:
    print(f"{solution:<14} {answer:<12} {verl(answer, solution)!s:<7} {openrlhf.grade_answer(answer, solution)}")
points = [(f"3{second}", f"(3,{second})") for second in range(50, 150)]
paid = [sum(grade(*point) for point in points) for grade in (verl, openrlhf.grade_answer)]
print(f"of {len(points)} points: verl {paid[0]}, OpenRLHF {paid[1]}")
EOF
env/bin/python -W ignore ask.py 2>ask.log | tee seen || { tail ask.log; exit 1; }
diff seen - <<'EOF' || { echo "changed"; exit 1; }
(3,250)        3250         True    True
(3, 250)       3250         False   True
(3,250)        3251         False   False
(3,25)         325          False   False
3250           (3,250)      True    True
[5,100)        (5,100]      True    True
[5,99)         (5,99]       False   False
(-1,500)       -1500        True    True
(0.5,100)      0.51         True    True
(1,200,300)    1200300      True    True
of 100 points: verl 50, OpenRLHF 50
EOF
echo "as stated: verl 0.9.1, OpenRLHF 0.11.2"
