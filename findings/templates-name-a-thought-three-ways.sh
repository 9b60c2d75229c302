#!/usr/bin/env bash
# The chat templates that llama-cpp-python 0.3.36 ships: a message's thought goes by three names, and under another one it
# is left out in silence.
#
# OpenAI-compatible servers return a thought as `reasoning_content` or as `reasoning`. Given back in a message it reaches
# the model only where the template reads that very key. Others skip it, and nothing is raised. So a conversation that is
# rendered for training, or to see what ends a turn, may have lost its thoughts. In two of these families a thought is a
# message of its own whose end looks like the end of the turn. All keys at once show the thought once in each of them.
#
# Seen, on Python 3.11 with transformers 5.19.0, for a user's turn and an assistant's with a thought:
#   templates that show it under reasoning_content 21, reasoning 7, thinking 3
#   of 70 templates 24 show it under one of them, and each of these once where all three are given
#   not under reasoning_content: LFM2.5-8B-A1B, openai-gpt-oss-120b, upstage-Solar-Open-100B
# Fails when this changes.
set -euo pipefail
lock=$(cd "$(dirname "$0")/.." && pwd)/requirements/cpu.txt
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

python3 -m venv env
env/bin/pip install -qq --no-compile "$(grep -oE '^transformers==[^ ;\\]*' "$lock")" jinja2 scikit-build-core
env/bin/pip download -qq --no-deps --no-binary :all: --no-build-isolation llama-cpp-python==0.3.36
tar xzf llama_cpp_python-0.3.36.tar.gz --wildcards '*.jinja'
cat >ask.py <<'PY'
from pathlib import Path

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

KEYS = ("reasoning_content", "reasoning", "thinking")
THOUGHT, ANSWER = "a marker thought", "a marker answered"
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def shows(template, *keys):
    message = {"role": "assistant", "content": ANSWER} | dict.fromkeys(keys, THOUGHT)
    try:
        rendered, _ = render_jinja_template(
            [[{"role": "user", "content": "asked"}, message]], chat_template=template, **TOKENS
        )
    except (TemplateError, TypeError):  # it refuses the conversation, or needs tools
        return 0
    return rendered[0].count(THOUGHT)


files = sorted(Path().glob("llama_cpp_python-0.3.36/vendor/llama.cpp/models/templates/*.jinja"))
by_key = {key: {file.stem for file in files if shows(file.read_text("utf-8"), key)} for key in KEYS}
some = set().union(*by_key.values())
counts = [shows(file.read_text("utf-8"), *KEYS) for file in files if file.stem in some]
print("templates that show it under", ", ".join(f"{key} {len(found)}" for key, found in by_key.items()))
print(f"of {len(files)} templates {len(some)} show it under one of them, with all {set(counts)} times")
print("not under reasoning_content:", ", ".join(sorted(some - by_key["reasoning_content"])))
PY
env/bin/python ask.py 2>/dev/null | tee said
diff said - <<'SEEN'
templates that show it under reasoning_content 21, reasoning 7, thinking 3
of 70 templates 24 show it under one of them, with all {1} times
not under reasoning_content: LFM2.5-8B-A1B, openai-gpt-oss-120b, upstage-Solar-Open-100B
SEEN
