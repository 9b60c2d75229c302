#!/usr/bin/env bash
# mergekit 0.1.5 with peft 0.21.2: an adapter that mergekit-extract-lora made of a fine-tune has the changes of its
# biases in the file, and PEFT does not read them.
#
# They are written as lora_B.bias beside each layer's factors, which PEFT takes where adapter_config.json has lora_bias.
# mergekit does not write that key, and PEFT drops keys of a file that it has no place for without a word. So of a model
# with biases, as Qwen 2 and 2.5 have in q, k and v, an adapter of full rank is not the fine-tune: the weights are exact
# and the biases are the base's. A loss of quality is put down to the rank, and more of it does not help. With lora_bias
# set by hand the adapter is exact, but cannot be merged, since PEFT then wants a bias in every layer that it adapts.
#
# Seen, on Python 3.11 without a GPU: a random Qwen 2 of two layers, all linear layers changed, extracted at full rank
#   in the file                        6 biases; lora_bias: not there
#   changes of 14 weights, merged      1.00 of them
#   changes of 6 biases, merged        0.00 of them, and no warning
#   mean distance of log-probs from the fine-tune, in nats: the base 0.106, with the adapter 0.027, with lora_bias 0.000
#   merged with lora_bias              RuntimeError
# Fails when this changes.
set -euo pipefail
lock=$(cd "$(dirname "$0")/.." && pwd)/requirements/cpu.txt
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

pinned() { grep -oE "^$1==[^ ;\\]*" "$lock"; }
python3 -m venv env
env/bin/pip install -qq --no-deps --no-compile "$(pinned torch)"
env/bin/pip install -qq --no-compile -U setuptools sympy networkx jinja2 mergekit==0.1.5 \
    "$(pinned peft)" "$(pinned transformers)"
env/bin/pip list 2>/dev/null | grep -E '^(mergekit|peft|transformers|torch) '

cat >make.py <<'EOF'
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

config = Qwen2Config(
    vocab_size=256, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=4, dtype="float32",
)
torch.manual_seed(0)
model = Qwen2ForCausalLM(config)
model.save_pretrained("base")
with torch.no_grad():
    for name, one in model.named_parameters():
        if "_proj" in name:
            one.add_(0.02 * torch.randn_like(one))
model.save_pretrained("tuned")
EOF
cat >ask.py <<'EOF'
import json
import warnings
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

IDS = torch.arange(32)[None] * 7
CONFIG = Path("adapter/adapter_config.json")
base, tuned = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in ("base", "tuned"))
start = {name: one.detach().clone() for name, one in base.named_parameters()}
goal = tuned(IDS).logits.log_softmax(-1)
written = load_file("adapter/adapter_model.safetensors")
asked = json.loads(CONFIG.read_text())
biases = [name for name in written if name.endswith(".lora_B.bias")]
print(f"{len(biases)} biases in the file, lora_bias {asked.get('lora_bias')}")


def away(model):
    return (model(IDS).logits.log_softmax(-1) - goal).abs().mean().item()


def loaded():
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fresh = AutoModelForCausalLM.from_pretrained("base", dtype=torch.float32)
        model = PeftModel.from_pretrained(fresh, "adapter")
    return model, sum("bias" in str(one.message) for one in said)


model, told = loaded()
first, now = away(base), away(model)
print(f"nats from the fine-tune: the base {first:.3f}, with the adapter {now:.3f}, {told} warnings of biases")
merged = dict(model.merge_and_unload().named_parameters())
for kind in ("weight", "bias"):
    names = [name for name in start if "_proj" in name and name.endswith(kind)]
    change, found = (
        torch.cat([(one[name] - start[name]).detach().flatten() for name in names])
        for one in (dict(tuned.named_parameters()), merged)
    )
    kept = found.dot(change) / change.dot(change)
    print(f"{kind}: {len(names)} tensors, {kept:.2f} of the change in the merged model")
CONFIG.write_text(json.dumps(asked | {"lora_bias": True}))
model, told = loaded()
print(f"nats with lora_bias: {away(model):.3f}")
try:
    model.merge_and_unload()
except RuntimeError as error:
    print("merged with lora_bias:", error)
EOF
export HOME="$folder"
env/bin/python make.py 2>ask.log || { tail ask.log; exit 1; }
env/bin/mergekit-extract-lora --model "$folder/tuned" --base-model "$folder/base" --out-path adapter --max-rank 64 \
    --exclude-regex embed_tokens --exclude-regex lm_head >ask.log 2>&1 || { tail ask.log; exit 1; }
env/bin/python ask.py 2>ask.log | tee seen || { tail ask.log; exit 1; }
diff seen - <<'EOF' || { echo "changed"; tail ask.log; exit 1; }
6 biases in the file, lora_bias None
nats from the fine-tune: the base 0.106, with the adapter 0.027, 0 warnings of biases
weight: 14 tensors, 1.00 of the change in the merged model
bias: 6 tensors, 0.00 of the change in the merged model
nats with lora_bias: 0.000
merged with lora_bias: Impossible to merge LoRA with `lora_bias=True` because the base layer has no bias.
EOF
! grep -i bias ask.log || { echo "changed: it is said in a log"; exit 1; }
echo "as stated: mergekit 0.1.5, peft 0.21.2"
