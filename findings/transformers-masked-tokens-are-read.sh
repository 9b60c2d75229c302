#!/usr/bin/env bash
# transformers 5.19.0, torch 2.13.0: DeepSeek V4, RecurrentGemma and RWKV read tokens that the attention mask hides.
#
# Trainers pad prompts on the left, hide the padding with attention_mask and give positions that begin at the first real
# token. In DeepSeek V4 the compressed keys and values of its long-range layers are made of all tokens, the hidden ones
# too, and queries attend to them. RecurrentGemma's convolution and recurrence run over the padding, and RWKV takes an
# attention mask and does not look at it. So a row's log-probs depend on how much padding it has, that is on the longest
# row of its batch, and on what the padding token is. An engine, which pads nothing, has others. Nothing warns. Hybrids
# that set hidden states to 0 under the mask (Jamba, Bamba, Falcon H1) are right, and all are right with padding on the
# right.
#
# Seen, on Python 3.11 without a GPU: random models, a row of 24 tokens; largest difference of a log-prob, in nats
#                      8 hidden tokens on the left:   the same, other tokens   8 hidden on the right:
#                      against the row alone          in their place           against the row alone
#   deepseek_v4            1.91                           2.51                     0.00
#   recurrent_gemma        0.14                           0.18                     0.00
#   rwkv                   1.91                           1.72                     0.00
#   llama                  0.00                           0.00                     0.00
#   jamba                  0.00                           0.00                     0.00
#   falcon_h1              0.00                           0.00                     0.00
# Fails when this changes.
set -euo pipefail
lock=$(cd "$(dirname "$0")/.." && pwd)/requirements/cpu.txt
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

pinned() { grep -oE "^$1==[^ ;\\]*" "$lock"; }
python3 -m venv env
env/bin/pip install -qq --no-deps --no-compile "$(pinned torch)"
env/bin/pip install -qq --no-compile -U setuptools sympy networkx jinja2 "$(pinned transformers)"
env/bin/pip list 2>/dev/null | grep -E '^(transformers|torch) '

cat >ask.py <<'PY'
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

logging.set_verbosity_error()
torch.set_grad_enabled(False)
LENGTH, HIDDEN, END = 24, 8, 2
COMMON = dict(vocab_size=200, hidden_size=64, pad_token_id=0, bos_token_id=1, eos_token_id=2)
HEADS = dict(num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4, intermediate_size=96)
FAMILIES = {
    "deepseek_v4": HEADS
    | dict(
        n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, q_lora_rank=32, qk_rope_head_dim=16,
        index_n_heads=4, index_head_dim=32, index_topk=4, initializer_range=0.2,
    ),
    "recurrent_gemma": HEADS | dict(num_hidden_layers=3, lru_width=64, attention_window_size=64),
    "rwkv": dict(num_hidden_layers=2, attention_hidden_size=64, intermediate_size=96, context_length=64),
    "llama": HEADS | dict(initializer_range=0.2),
    "jamba": HEADS
    | dict(
        attn_layer_period=2, attn_layer_offset=1, num_experts=1, num_experts_per_tok=1, use_mamba_kernels=False,
        mamba_d_state=8, initializer_range=0.2,
    ),
    "falcon_h1": HEADS
    | dict(mamba_d_ssm=128, mamba_n_heads=8, mamba_d_head=16, mamba_n_groups=1, mamba_d_state=8, initializer_range=0.2),
}


def logprobs(made, ids, mask, **given):
    return torch.log_softmax(made(input_ids=ids, attention_mask=mask, use_cache=False, **given).logits.float(), -1)[0]


def moved(one, other):
    return (one - other).abs().max().item()


found = {}
for name, settings in FAMILIES.items():
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **COMMON, **settings)
    made = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    made = made.eval().float()
    torch.manual_seed(1)
    row, others = torch.randint(3, 200, (LENGTH,)), torch.randint(3, 200, (HIDDEN,))
    alone = logprobs(made, row[None], torch.ones(1, LENGTH, dtype=torch.long))
    padding = torch.full((HIDDEN,), END)  # as where a tokenizer has no padding token of its own
    left, right = torch.cat([padding, row])[None], torch.cat([row, padding])[None]
    mask = torch.tensor([[0] * HIDDEN + [1] * LENGTH])
    begins = {} if name == "rwkv" else {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    padded = logprobs(made, left, mask, **begins)[HIDDEN:]
    replaced = logprobs(made, torch.cat([others, row])[None], mask, **begins)[HIDDEN:]
    after = logprobs(made, right, mask.flip(1))[:LENGTH]
    found[name] = moved(padded, alone), moved(padded, replaced), moved(after, alone)
    print(f"{name:16}" + "".join(f"{one:8.2f}" for one in found[name]))

ROUNDING = 1e-3
for name, (alone, replaced, after) in found.items():
    reads = name in ("deepseek_v4", "recurrent_gemma", "rwkv")
    assert (alone > 0.01 and replaced > 0.01) if reads else max(alone, replaced) < ROUNDING, (name, alone, replaced)
    assert after < ROUNDING, (name, after)
PY
env/bin/python ask.py
echo "as stated"
