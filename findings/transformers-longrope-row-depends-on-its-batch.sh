#!/usr/bin/env bash
# transformers 5.19.0: with longrope or dynamic RoPE a row's log-probs depend on the length of the rows beside it, and
# on its own padding.
#
# These kinds choose their frequencies by the largest position of the whole batch. One row longer than the original
# length turns all others: a short row's log-probs are then another model's. Phi-3, Phi-3.5 and Phi-4-mini are longrope
# (4,096). Left padding counts as length too where no position_ids are given, and so does a long sequence in the same
# pack, whose positions begin anew. A policy's log-prob, its reference's and the ratio of both therefore depend on how
# rows were put into micro-batches. Nothing warns. yarn, llama3 and linear do not have it.
#
# Seen, on Python 3.11 without a GPU: a random model of two layers, original length 32; largest difference of a log-prob
# of a row of 20 tokens from the same row alone, in nats
#                                      longrope    dynamic    yarn
#   beside a row of 30                    0.000      0.000    0.000
#   beside a row of 40                   12.940      5.933    0.000
#   left-padded to 40                    12.940      5.933    0.000
#   left-padded, with position_ids        0.000      0.000    0.000
#   packed before a sequence of 40       12.940      5.933    0.000
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
from transformers import LlamaConfig, LlamaForCausalLM

torch.set_grad_enabled(False)
SHORT, NEAR, LONG, ORIGINAL = 20, 30, 40, 32
KINDS = {
    "longrope": {
        "short_factor": [1.0] * 8, "long_factor": [1.0 + 0.5 * k for k in range(8)],
        "original_max_position_embeddings": ORIGINAL, "factor": 4.0,
    },
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": ORIGINAL},
}


def model(kind, settings):
    rope = {"rope_type": kind, "rope_theta": 10_000.0, **settings}
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=200, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            initializer_range=0.3, max_position_embeddings=ORIGINAL if kind == "dynamic" else 4 * ORIGINAL,
            rope_parameters=rope, pad_token_id=0,
        )
    ).eval()


def logprobs(made, ids, **given):
    return torch.log_softmax(made(input_ids=ids, **given).logits, -1)


def batch(*rows):
    ids = torch.zeros(len(rows), max(len(row) for row in rows), dtype=torch.long)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = row
    return {"ids": ids, "attention_mask": (ids != 0).long()}


found = {}
for kind, settings in KINDS.items():
    made = model(kind, settings)
    torch.manual_seed(1)
    row, near, long = (torch.randint(3, 200, (length,)) for length in (SHORT, NEAR, LONG))
    alone = logprobs(made, row[None])[0]
    padded = torch.cat([torch.zeros(LONG - SHORT, dtype=torch.long), row])[None]
    mask = (padded != 0).long()
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    packed = {"position_ids": torch.cat([torch.arange(SHORT), torch.arange(LONG)])[None]}
    others = {
        "beside a row of 30": logprobs(made, **batch(row, near))[0, :SHORT],
        "beside a row of 40": logprobs(made, **batch(row, long))[0, :SHORT],
        "left-padded to 40": logprobs(made, padded, attention_mask=mask)[0, -SHORT:],
        "left-padded, with position_ids": logprobs(
            made, padded, attention_mask=mask, position_ids=positions
        )[0, -SHORT:],
        "packed before a sequence of 40": logprobs(made, torch.cat([row, long])[None], **packed)[0, :SHORT],
    }
    found[kind] = {name: (alone - other).abs().max().item() for name, other in others.items()}
print(" " * 34 + "".join(f"{kind:>10}" for kind in KINDS))
for name in found["yarn"]:
    print(f"{name:34}" + "".join(f"{found[kind][name]:10.3f}" for kind in KINDS))
ROUNDING = 1e-3
for kind, moved in (("longrope", True), ("dynamic", True), ("yarn", False)):
    for name, difference in found[kind].items():
        expected = moved and name not in ("beside a row of 30", "left-padded, with position_ids")
        assert (difference > 1.0) == expected and (expected or difference < ROUNDING), (kind, name, difference)
PY
env/bin/python ask.py
echo "as stated"
