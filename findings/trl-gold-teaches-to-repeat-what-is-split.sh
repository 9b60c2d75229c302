#!/usr/bin/env bash
# TRL 1.16.0: GOLD's loss for a teacher with another tokenizer teaches the student to repeat the last part of each word
# that it writes in two tokens and the teacher in one, though it wrote all of them right before.
#
# Such a pair is one place for the loss: the student's distribution at it, times the probability of the token that comes
# second. By default (uld_token_merge_strategy "observed") the logits are not shifted: the row of a token is what comes
# after it. The factor is then the probability of the second token after itself, which is next to nothing: the student
# seems to be far from the teacher, and comes nearer by giving that token to itself. The loss goes down all the way, as
# in a run that goes well. The distribution beside it is that from within the word, compared with the teacher's after
# the word; and the first token of an answer is never trained. Where both split a text alike no token is wrong, so that
# a pair of one family says nothing. The documentation calls the second token's probability the conditional one. With
# "bayesian" the rows are shifted and the factor is the one that is meant.
#
# Seen, on Python 3.11 without a GPU: the answer "abcabcabcabc", the student's tokens a, b and c, the teacher's ab and
# c; a model is a table of what follows a token, right at the start with 0.9 for both; Adam, 0.05, on the loss alone
#                           loss    b after a   c after b   b after b
#   by default, step 0      0.487       0.900       0.900       0.025
#               step 30     0.290       0.903       0.535       0.420
#               step 100    0.008       0.900       0.015       0.984
#   bayesian,   step 0      0.050       0.900       0.900       0.025
#               step 100    0.001       0.902       0.900       0.025
#   by default, with the teacher's own tokens: the loss 0.000, and c after ab 0.900, from the first step to the last
# Fails when this changes.
set -euo pipefail
lock=$(cd "$(dirname "$0")/.." && pwd)/requirements/cpu.txt
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

pinned() { grep -oE "^$1==[^ ;\\]*" "$lock"; }
python3 -m venv env
env/bin/pip install -qq --no-deps --no-compile "$(pinned torch)"
env/bin/pip install -qq --no-compile -U setuptools sympy networkx jinja2 datasets==5.2.0 trl==1.16.0 \
    "$(pinned transformers)" "$(pinned accelerate)"
env/bin/pip list 2>/dev/null | grep -E '^(trl|transformers|torch) '

cat >ask.py <<'EOF'
import torch
from trl.experimental.gold import GOLDConfig
from trl.experimental.gold.gold_trainer import ULDLoss

SURE = 0.9
LETTERS, WORDS = ["<begin>", "a", "b", "c", "<end>"], ["<begin>", "ab", "c", "<end>", "x"]


def knows(vocabulary, *answer):
    """A model that sees the last token alone: a row of logits for each, with SURE for what follows it in the answer."""
    table = torch.full((len(vocabulary), len(vocabulary)), (1 - SURE) / (len(vocabulary) - 1))
    for last, following in zip(("<begin>", *answer), (*answer, answer[0])):
        table[vocabulary.index(last), vocabulary.index(following)] = SURE
    return table.log()


def given(vocabulary, *answer):
    """Ids, labels without the first token, and where each token ends in the answer's text."""
    tokens, places = ["<begin>", *answer * 4, "<end>"], [[0, 0]]
    for token in tokens[1:]:
        start = places[-1][1]
        places.append([start, start + (0 if token == "<end>" else len(token))])
    ids = torch.tensor([[vocabulary.index(token) for token in tokens]])
    labels = ids.clone()
    labels[:, 0] = -100
    return ids, labels, torch.tensor([places])


def train(name, vocabulary, answer, shown, **settings):
    config = GOLDConfig(output_dir="run", use_uld_loss=True, bf16=False, use_cpu=True, report_to=[], **settings)
    loss, teacher = ULDLoss(config), knows(WORDS, "ab", "c")
    ids, labels, places = given(vocabulary, *answer)
    teacher_ids, teacher_labels, teacher_places = given(WORDS, "ab", "c")
    student = knows(vocabulary, *answer).requires_grad_(True)
    optimizer = torch.optim.Adam([student], lr=0.05)
    for step in range(101):
        found = loss(
            student[ids], teacher[teacher_ids], labels, teacher_labels, ids, teacher_ids, places, teacher_places
        )
        if step in (0, 30, 100):
            rows = student.softmax(-1)
            chances = (f"{b} after {a} {rows[vocabulary.index(a), vocabulary.index(b)]:.3f}" for a, b in shown)
            print(f"{name}, step {step}: loss {found.item():.3f},", ", ".join(chances))
        optimizer.zero_grad()
        found.backward()
        optimizer.step()


PAIRS = (("a", "b"), ("b", "c"), ("b", "b"))
train("by default", LETTERS, ("a", "b", "c"), PAIRS)
train("bayesian", LETTERS, ("a", "b", "c"), PAIRS, uld_token_merge_strategy="bayesian")
train("by default, alike", WORDS, ("ab", "c"), (("ab", "c"), ("c", "c")))
EOF
HOME="$folder" env/bin/python -W ignore ask.py 2>ask.log | tee seen || { tail ask.log; exit 1; }
diff seen - <<'EOF' || { echo "changed"; tail ask.log; exit 1; }
by default, step 0: loss 0.487, b after a 0.900, c after b 0.900, b after b 0.025
by default, step 30: loss 0.290, b after a 0.903, c after b 0.535, b after b 0.420
by default, step 100: loss 0.008, b after a 0.900, c after b 0.015, b after b 0.984
bayesian, step 0: loss 0.050, b after a 0.900, c after b 0.900, b after b 0.025
bayesian, step 30: loss 0.006, b after a 0.901, c after b 0.900, b after b 0.025
bayesian, step 100: loss 0.001, b after a 0.902, c after b 0.900, b after b 0.025
by default, alike, step 0: loss 0.000, c after ab 0.900, c after c 0.025
by default, alike, step 30: loss 0.000, c after ab 0.900, c after c 0.025
by default, alike, step 100: loss 0.000, c after ab 0.900, c after c 0.025
EOF
echo "as stated: TRL 1.16.0"
