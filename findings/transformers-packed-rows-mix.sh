#!/usr/bin/env bash
# transformers 5.19.0, torch 2.13.0: rows that are packed into one are kept apart only without a cache, and in some
# families not even then.
#
# Positions that begin again at 0 are how packing marks rows for attention in torch ("sdpa", "eager"). They are looked
# at where neither an attention mask nor a cache is given, and a model makes itself a cache by default: the same call
# mixes rows in a scoring pass and does not in a training pass that has use_cache=False. A mask of ones, which padding
# and collators give, mixes them too. gpt-oss and GraniteMoeHybrid do not hand the positions on to the mask at all. In
# models with recurrent layers attention is kept apart, and state runs on from row to row through convolutions and
# recurrence (in the implementation in torch, which is what a CPU has). Nothing warns of it. Whoever packs has to
# compare one packed row with the same rows alone.
#
# Seen, on Python 3.11 without a GPU: random models of two layers, two rows of 8 tokens in one; the second row's logits
# against the same row alone
#                       use_cache=False   by default   use_cache=False, a mask of ones
#   Qwen3               as alone          mixed        mixed
#   DeepseekV3          as alone          mixed        mixed
#   Gemma3Text          as alone          mixed        mixed
#   GptOss              mixed             mixed        mixed
#   GraniteMoeHybrid    mixed             mixed        mixed      (attention layers alone)
#   Qwen3_5Text         mixed             mixed        mixed
#   Qwen3Next           mixed             mixed        mixed
#   OlmoHybrid          mixed             mixed        mixed
#   FalconH1            mixed             mixed        mixed
#   Bamba               mixed             mixed        mixed
#   NemotronH           mixed             mixed        mixed
#   Jamba               mixed             mixed        mixed
#   Lfm2                mixed             mixed        mixed
# Fails when this changes.
set -euo pipefail
lock=$(cd "$(dirname "$0")/.." && pwd)/requirements/cpu.txt
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

python3 -m venv env
env/bin/pip install -qq --no-deps --no-compile "$(grep -oE '^torch==[^ ;\\]*' "$lock")"
env/bin/pip install -qq --no-compile -U setuptools filelock typing-extensions sympy networkx jinja2 fsspec
env/bin/pip install -qq --no-compile "$(grep -oE '^transformers==[^ ;\\]*' "$lock")"
env/bin/pip list 2>/dev/null | grep -E '^(transformers|torch) '

cat >ask.py <<'EOF'
import sys

import torch
import transformers
from transformers import AutoModelForCausalLM

SIZES = dict(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=4, pad_token_id=0,
)
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=16)
LATENT = dict(q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=4, qk_nope_head_dim=8, v_head_dim=8)
ROUTED = dict(n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2, n_group=1, topk_group=1)
DELTA = dict(
    layer_types=["linear_attention", "full_attention"], linear_num_value_heads=4, linear_num_key_heads=4,
    linear_key_head_dim=8, linear_value_head_dim=8,
)
MAMBA = dict(mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8, mamba_n_groups=1)
FAMILIES = {
    "Qwen3": dict(head_dim=8),
    "DeepseekV3": dict(moe_intermediate_size=16, first_k_dense_replace=1, **ROUTED, **LATENT),
    "Gemma3Text": dict(head_dim=8),
    "GptOss": dict(head_dim=8, num_local_experts=4),
    "GraniteMoeHybrid": dict(
        layer_types=["attention"] * 2, num_local_experts=4, num_experts_per_tok=2, shared_intermediate_size=16,
        position_embedding_type="rope", **MAMBA,
    ),
    "Qwen3_5Text": dict(head_dim=8, **DELTA),
    "Qwen3Next": dict(head_dim=8, **DELTA, **EXPERTS),
    "OlmoHybrid": DELTA,
    "FalconH1": dict(mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8, mamba_n_groups=1),
    "Bamba": dict(attn_layer_indices=[1], **MAMBA),
    "NemotronH": dict(
        hybrid_override_pattern="M*", mamba_num_heads=8, mamba_head_dim=8, ssm_state_size=8, n_groups=1
    ),
    "Jamba": dict(attn_layer_period=2, attn_layer_offset=1, num_experts=2),
    "Lfm2": dict(layer_types=["conv", "full_attention"]),
}
first, second = torch.randint(5, 64, (2, 1, 8), generator=torch.Generator().manual_seed(0))
packed = torch.cat([first, second], 1)
positions = torch.arange(8).repeat(1, 2)
CALLS = ({"use_cache": False}, {}, {"use_cache": False, "attention_mask": torch.ones_like(packed)})
for family, sizes in FAMILIES.items():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(getattr(transformers, f"{family}Config")(**SIZES | sizes)).eval()
    with torch.no_grad():
        alone = model(second, use_cache=False).logits
        off = [(model(packed, position_ids=positions, **call).logits[:, 8:] - alone).abs().max() for call in CALLS]
    print(f"{family}:", *("as alone" if one < 3e-6 else "mixed" for one in off), sep="  ")
    print(family, *(f"{one:.1e}" for one in off), file=sys.stderr)
EOF
HOME="$folder" env/bin/python -W ignore ask.py 2>ask.log | tee seen || { tail ask.log; exit 1; }
diff seen - <<'EOF' || { echo "changed"; tail ask.log; exit 1; }
Qwen3:  as alone  mixed  mixed
DeepseekV3:  as alone  mixed  mixed
Gemma3Text:  as alone  mixed  mixed
GptOss:  mixed  mixed  mixed
GraniteMoeHybrid:  mixed  mixed  mixed
Qwen3_5Text:  mixed  mixed  mixed
Qwen3Next:  mixed  mixed  mixed
OlmoHybrid:  mixed  mixed  mixed
FalconH1:  mixed  mixed  mixed
Bamba:  mixed  mixed  mixed
NemotronH:  mixed  mixed  mixed
Jamba:  mixed  mixed  mixed
Lfm2:  mixed  mixed  mixed
EOF
echo "as stated: transformers 5.19.0"
