#!/usr/bin/env bash
# transformers 5.19.0: `return_assistant_tokens_mask` marks nothing, or what the user said, where an answer's first or
# last character has no token.
#
# The mask is what to train on. The template marks each answer in the text, and the tokens of its first and last
# character are looked up by offsets. Where the first has none, this answer and all later ones are left out; where the
# last has none, everything until the end is marked. Both are meant for a text that was cut at its end. But a text that
# was cut at its start (truncation_side "left", to keep the last turns) has no token for the first answer either. And
# a byte-level tokenizer whose post-processor trims offsets, as tokenizers' ByteLevel does unless it is asked not to,
# has none for a blank at the end of an answer or before its first word. With special tokens that swallow the blanks
# after them (rstrip) the mask begins one token early. Nothing warns. Whoever trains on such a mask has to look for rows
# without a mark, and to decode what is marked.
#
# Seen, on Python 3.11, of a question, the answer "six seven", a question and the answer "eight nine"; what is marked:
#   all of it                                                         both answers
#   its last 7 of 16 tokens, in which the second answer is whole      nothing
#   the first answer begins with a blank, offsets trimmed             nothing
#   the first answer ends with a blank, offsets trimmed               it, and all that follows
#   the first answer begins with a blank, rstrip                      both, and the special token before the first
#   a blank at either end, offsets not trimmed                        both answers
# Fails when this changes.
set -euo pipefail
lock=$(cd "$(dirname "$0")/.." && pwd)/requirements/cpu.txt
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

python3 -m venv env
env/bin/pip install -qq --no-compile "$(grep -oE '^transformers==[^ ;\\]*' "$lock")" jinja2
env/bin/pip list 2>/dev/null | grep -E '^(transformers|tokenizers) '

cat >ask.py <<'EOF'
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import TokenizersBackend

TEMPLATE = """{%- for message in messages %}<|{{ message.role }}|>
{%- if message.role == 'assistant' %}{% generation %}{{ message.content }}{% endgeneration %}
{%- else %}{{ message.content }}{% endif %}<|end|>{% endfor %}"""
WORDS = "one two three four five six seven eight nine"


def made(trimmed=False, swallows=False, **options):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel() if trimmed else processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=letters, show_progress=False)
    tokenizer.train_from_iterator([f"{WORDS} {WORDS}\n{word}" for word in WORDS.split()], trainer)
    names = ("<|user|>", "<|assistant|>", "<|end|>")
    tokenizer.add_special_tokens([AddedToken(name, special=True, rstrip=swallows) for name in names])
    return TokenizersBackend(tokenizer_object=tokenizer, **options)


def ask(what, tokenizer, first="six seven", **options):
    texts = ("one two", first, "three four", "eight nine")
    messages = [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, texts)]
    found = tokenizer.apply_chat_template(
        messages, chat_template=TEMPLATE, return_assistant_tokens_mask=True, tokenize=True, return_dict=True, **options
    )
    marked = [token for token, mark in zip(found["input_ids"], found["assistant_masks"]) if mark]
    print(f"{what}: {len(found['input_ids'])} tokens, marked {tokenizer.decode(marked)!r}")


ask("all of it", made())
ask("the last 7", made(truncation_side="left"), truncation=True, max_length=7)
ask("begins with a blank", made(), " six seven")
ask("begins with a blank, trimmed", made(trimmed=True), " six seven")
ask("ends with a blank", made(), "six seven ")
ask("ends with a blank, trimmed", made(trimmed=True), "six seven ")
ask("begins with a blank, rstrip", made(swallows=True), " six seven")
EOF
env/bin/python -W ignore ask.py 2>ask.log | tee seen || { tail ask.log; exit 1; }
diff seen - <<'EOF' || { echo "changed"; exit 1; }
all of it: 16 tokens, marked 'six seveneight nine'
the last 7: 7 tokens, marked ''
begins with a blank: 16 tokens, marked ' six seveneight nine'
begins with a blank, trimmed: 16 tokens, marked ''
ends with a blank: 17 tokens, marked 'six seven eight nine'
ends with a blank, trimmed: 17 tokens, marked 'six seven <|end|><|user|>three four<|end|><|assistant|>eight nine<|end|>'
begins with a blank, rstrip: 16 tokens, marked '<|assistant|>six seveneight nine'
EOF
echo "as stated: transformers 5.19.0"
