#!/usr/bin/env bash
# transformers 5.19.0: the same tokenizer files are read in two ways, by the name of their folder: a byte-level
# tokenizer whose config names LlamaTokenizerFast loses every blank and line break in one of them.
#
# Until version 4 that class read tokenizer.json as it is, so that many models were published with the name and with a
# tokenizer of another kind (Llama 3's, or DeepSeek's). In version 5 the class takes the vocabulary and the merges of
# the file and builds what Llama 2 has around them: no token stands for a blank then, and blanks are left out, without
# a warning. A list of model types and a list of hub names are exempt. A folder that is called as on the hub is right
# (deepseek-ai/deepseek-r1-distill-llama-...); its copy or its fine-tune under another name is wrong. Type qwen2 is
# exempt, and splits by Qwen's own rule: no text is lost, and the ids are others. Type qwen3 is not exempt. What is
# saved again has the wrong tokenizer.json, for every other reader too. Where the class is PreTrainedTokenizerFast the
# file is read as it is, in both versions.
#
# Seen, on Python 3.11: a byte-level BPE of 350 tokens, "def f(x):" with an indented second line; tokenizers: 24 tokens
#   transformers 4.57.6, any type and name:       24, the text
#   5.19.0, type llama, folder mine:              16, 'deff(x):returnx+1'
#   5.19.0, type llama, folder deepseek-ai/deepseek-r1-distill-llama-8b: 24, the text
#   5.19.0, type qwen3, folder mine:              16, 'deff(x):returnx+1'
#   5.19.0, type qwen2, folder mine:              25, the text
#   5.19.0, type mistral, folder mine:            24, the text
#   saved again by 5.19.0, type llama, read by tokenizers: 16
# Fails when this changes.
set -euo pipefail
lock=$(cd "$(dirname "$0")/.." && pwd)/requirements/cpu.txt
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

python3 -m venv new
python3 -m venv old
new/bin/pip install -qq --no-compile "$(grep -oE '^transformers==[^ ;\\]*' "$lock")"
old/bin/pip install -qq --no-compile transformers==4.57.6 "$(grep -oE '^numpy==[^ ;\\]*' "$lock")"

cat >ask.py <<'EOF'
import json
import shutil
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, __version__

TEXT = "def f(x):\n    return x + 1"
made = Tokenizer(models.BPE())
made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
made.decoder = decoders.ByteLevel()
trainer = trainers.BpeTrainer(
    vocab_size=350, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<s>", "</s>"],
    show_progress=False,
)
made.train_from_iterator(["hello world 12345 abc  def\n\nx = 2024", "the 1000 numbers 123 456 789"] * 50, trainer)
NAMED = {"tokenizer_class": "LlamaTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
PLACES = [(kind, "mine") for kind in ("llama", "qwen3", "qwen2", "mistral")]
PLACES += [("llama", "deepseek-ai/deepseek-r1-distill-llama-8b")]
for kind, folder in PLACES:
    shutil.rmtree(folder, ignore_errors=True)
    Path(folder).mkdir(parents=True)
    made.save(f"{folder}/tokenizer.json")
    Path(folder, "tokenizer_config.json").write_text(json.dumps(NAMED))
    Path(folder, "config.json").write_text(json.dumps({"model_type": kind}))
    read = AutoTokenizer.from_pretrained(folder)
    ids = read(TEXT, add_special_tokens=False)["input_ids"]
    shown = "the text" if read.decode(ids) == TEXT else repr(read.decode(ids))
    print(f"{__version__}, {kind}, {folder}: {len(ids)} of {len(made.encode(TEXT).ids)}, {shown}")
    if (kind, folder) == ("llama", "mine"):
        read.save_pretrained("again")
        again = Tokenizer.from_file("again/tokenizer.json").encode(TEXT, add_special_tokens=False).ids
        print(f"{__version__}, saved again, read by tokenizers: {len(again)}")
EOF
export HF_HUB_OFFLINE=1 HOME="$folder"
{
    old/bin/python -W ignore ask.py 2>ask.log
    new/bin/python -W ignore ask.py 2>>ask.log
} | grep -E '^[0-9.]+, ' | tee seen || { tail ask.log; exit 1; }
diff seen - <<'EOF' || { echo "changed"; tail ask.log; exit 1; }
4.57.6, llama, mine: 24 of 24, the text
4.57.6, saved again, read by tokenizers: 24
4.57.6, qwen3, mine: 24 of 24, the text
4.57.6, qwen2, mine: 24 of 24, the text
4.57.6, mistral, mine: 24 of 24, the text
4.57.6, llama, deepseek-ai/deepseek-r1-distill-llama-8b: 24 of 24, the text
5.19.0, llama, mine: 16 of 24, 'deff(x):returnx+1'
5.19.0, saved again, read by tokenizers: 16
5.19.0, qwen3, mine: 16 of 24, 'deff(x):returnx+1'
5.19.0, qwen2, mine: 25 of 24, the text
5.19.0, mistral, mine: 24 of 24, the text
5.19.0, llama, deepseek-ai/deepseek-r1-distill-llama-8b: 24 of 24, the text
EOF
echo "as stated: transformers 5.19.0"
