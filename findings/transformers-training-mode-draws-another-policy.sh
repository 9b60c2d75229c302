#!/usr/bin/env bash
# transformers 5.19.0, torch 2.13.0: in training mode Seed-OSS drops out a tenth of its activations, and Phi-3.5-MoE
# draws its experts, by their default configuration.
#
# A policy-gradient step compares a token's log-prob with one of before, and takes both from the same function. Most
# current language models have no dropout, so that a model in training mode is that function and trainers call train()
# without a thought. SeedOssConfig has attention_dropout and residual_dropout of 0.1. Phi-3.5-MoE has none, but in
# training mode its router draws the experts with Gumbel noise where it takes the best two otherwise.
# The same row asked twice then has two log-probs, with the same weights: ratios are not 1 in the first step, and the KL
# to a reference of the same weights is not 0. Nothing warns. eval() ends it.
#
# Seen, on Python 3.11 without a GPU: random models, 16 rows of 32 tokens, with the defaults of their configuration
#                 mean |difference| of a token's log-prob, nats      share of ratios outside 0.8 to 1.2
#                 train, asked twice    train against eval            train against eval
#   seed_oss            0.47                  0.36                          0.67
#   phimoe              0.06                  0.07                          0.12
#   qwen3               0.00                  0.00                          0.00
#   olmoe               0.00                  0.00                          0.00
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
SIZES = dict(
    vocab_size=200, hidden_size=64, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.1,
)
FAMILIES = {
    "seed_oss": dict(head_dim=16),
    "phimoe": dict(num_local_experts=8),
    "qwen3": dict(head_dim=16),
    "olmoe": dict(num_experts=8, num_experts_per_tok=2),
}
found = {}
for name, settings in FAMILIES.items():
    config = AutoConfig.for_model(name, **SIZES, **settings)
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(config)
    ids = torch.randint(3, 200, (16, 32))

    def logprobs():
        with torch.no_grad():
            scores = torch.log_softmax(made(input_ids=ids, use_cache=False).logits.float(), -1)
        return scores[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]

    still, again = (made.eval(), logprobs())[1], logprobs()
    assert torch.equal(still, again), name
    one, two = (made.train(), logprobs())[1], logprobs()
    ratio = (one - still).exp()
    outside = ((ratio < 0.8) | (ratio > 1.2)).float().mean().item()
    found[name] = (one - two).abs().mean().item(), (one - still).abs().mean().item(), outside
    noise = {key: value for key, value in config.to_dict().items() if ("drop" in key or "jitter" in key) and value}
    print(f"{name:10}" + "".join(f"{value:8.2f}" for value in found[name]), noise)

for name, (twice, against, outside) in found.items():
    if name in ("seed_oss", "phimoe"):
        assert min(twice, against, outside) > 0.05, (name, twice, against, outside)
    else:
        assert max(twice, against) < 1e-6, (name, twice, against)
PY
env/bin/python ask.py
echo "as stated"
