#!/usr/bin/env bash
# reasoning-gym 0.1.25: the tasks' own `score_answer` pays for wrong answers, in one task for any text at all.
#
# The score is what a trainer takes as the reward. game_of_life_halting asks whether a game ends and compares
# bool(answer) with bool("True") or bool("False"): each text but the empty one is right. puzzle24 takes another puzzle's
# solution, with numbers that were not given. Five more find the right answer anywhere in the text, also behind "not".
# Where a task has no rule of its own, a text that contains the right answer is worth the answer's share of its letters:
# a number with one digit too many loses that digit's share, and "I don't know" has the "on" that acre asks for. Others
# pay a hundredth for any text. Whoever trains on these rewards has to ask each task with wrong answers first.
#
# Seen, on Python 3.11, 4 items of each task (seed 0); of 105 tasks 100 have an answer in text to compare with:
#   "I don't know"                              paid by 14 of 100, in full by game_of_life_halting
#   another item's answer                       paid by 35 of 98, in full by game_of_life_halting and puzzle24
#   "The answer is not " and the right answer   paid by 62 of 100, in full by game_of_life_halting, gsm_symbolic,
#                                               kakurasu, knights_knaves, sokoban and survo
#   the right whole number of two digits or more, and a 7     paid by 15 of 15, up to 0.92
# Fails when this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

python3 -m venv env
env/bin/pip install -qq --no-compile reasoning-gym==0.1.25 sympy==1.14.0

cat >ask.py <<'EOF'
import re

import reasoning_gym
from reasoning_gym.factory import DATASETS

WRONG = {
    "I don't know": lambda item, items: ["I don't know"],
    "another item's": lambda item, items: [one["answer"] for one in items if one["answer"] != item["answer"]],
    "negated": lambda item, items: ["The answer is not " + item["answer"]],
    "a digit more": lambda item, items: [item["answer"] + "7"] if re.fullmatch(r"-?\d{2,}", item["answer"]) else [],
}


def paid(task, text, item):
    try:
        return task.score_answer(text, item)
    except ValueError:  # prime_factorization takes no other text
        return 0.0


best = {how: {} for how in WRONG}
for name in sorted(DATASETS.keys() - {"composite"}):
    task = reasoning_gym.create_dataset(name, size=4, seed=0)
    items = list(task)
    if not all(isinstance(item["answer"], str) for item in items):
        continue
    for how, texts in WRONG.items():
        found = [paid(task, text, item) for item in items for text in texts(item, items)]
        if found:
            best[how][name] = (max(found), min(found))
for how, tasks in best.items():
    some = [name for name, (most, _) in tasks.items() if most > 0]
    full = [name for name, (_, least) in tasks.items() if least == 1.0]
    most = max(most for name, (most, _) in tasks.items() if name not in full)
    print(f"{how}: paid by {len(some)} of {len(tasks)} tasks, up to {most:.2f} in part")
    print("    in full by:", *full)
EOF
env/bin/python -W ignore ask.py 2>ask.log | grep -E "tasks, up to|in full by" | tee seen || { tail ask.log; exit 1; }
diff seen - <<'EOF' || { echo "changed"; exit 1; }
I don't know: paid by 14 of 100 tasks, up to 0.17 in part
    in full by: game_of_life_halting
another item's: paid by 35 of 98 tasks, up to 0.93 in part
    in full by: game_of_life_halting puzzle24
negated: paid by 62 of 100 tasks, up to 0.97 in part
    in full by: game_of_life_halting gsm_symbolic kakurasu knights_knaves sokoban survo
a digit more: paid by 15 of 15 tasks, up to 0.92 in part
    in full by:
EOF
echo "as stated: reasoning-gym 0.1.25"
