#!/usr/bin/env bash
# peft 0.21.2 with transformers 5.19.0: in a model that has both experts and ordinary layers, LoRA on gate_proj, up_proj
# and down_proj adapts the experts and leaves out the ordinary layers of the same names, without a warning.
#
# transformers 5 keeps experts fused (mlp.experts.gate_up_proj, mlp.experts.down_proj), and peft turns the three names
# into those two parameters. The first dense layers (first_k_dense_replace, mlp_only_layers) and the shared experts still
# have linear layers called gate_proj, up_proj and down_proj, which then match nothing. "all-linear" does the same.
#
# Seen, on Python 3.11 without a GPU: DeepSeek-V3, 2 layers, the first one dense, one shared expert
#   linear layers of the MLPs             6: layers.0.mlp.*_proj, layers.1.mlp.shared_experts.*_proj
#   of them with an adapter               0, by name and by "all-linear"
#   the same names in a Qwen3 model       all
# So what a recipe for the dense model trains, it does not train here. Fails when this changes.
set -euo pipefail
lock=$(cd "$(dirname "$0")/.." && pwd)/requirements/cpu.txt
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

python3 -m venv env
env/bin/pip install -qq --no-deps --no-compile "$(grep -oE '^torch==[^ ;\\]*' "$lock")"
env/bin/pip install -qq --no-compile "$(grep -oE '^transformers==[^ ;\\]*' "$lock")" "$(grep -oE '^peft==[^ ;\\]*' "$lock")"
cat >ask.py <<'PY'
import warnings

from peft import LoraConfig, get_peft_model
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, Qwen3Config, Qwen3ForCausalLM

NAMES = ["gate_proj", "up_proj", "down_proj"]
SIZES = dict(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=4,
)
EXPERTS = dict(
    moe_intermediate_size=16, n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2, n_group=1, topk_group=1,
    first_k_dense_replace=1, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=4, qk_nope_head_dim=8, v_head_dim=8,
)
MODELS = {
    "DeepSeek-V3": lambda: DeepseekV3ForCausalLM(DeepseekV3Config(**SIZES, **EXPERTS)),
    "Qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8)),
}
EXPECTED = {"DeepSeek-V3": 0, "Qwen3": 6}

for model, make in MODELS.items():
    linear = {name for name, _ in make().named_modules() if name.rpartition(".")[2] in NAMES}
    for targets in (NAMES, "all-linear"):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            adapted = get_peft_model(make(), LoraConfig(r=4, target_modules=targets))
        names = {name.partition("base_model.model.")[2].partition(".lora_")[0] for name, _ in adapted.named_parameters()
                 if ".lora_" in name}
        told = [str(one.message) for one in said if any(layer in str(one.message) for layer in linear)]
        print(f"{model}, {targets}: {len(linear & names)} of {len(linear)} linear layers of the MLPs, {len(told)} warnings")
        assert len(linear) == 6 and len(linear & names) == EXPECTED[model] and not told, "changed"
PY
env/bin/python -W ignore ask.py
echo "as stated: peft 0.21.2, transformers 5.19.0"
