#!/usr/bin/env bash
# verl 0.9.1: with loss_agg_mode seq-mean-token-sum-norm, verl's Dr. GRPO, an answer's loss is divided by the length of
# the longest answer in its micro-batch, and with micro-batches of one by its own length, which is what Dr. GRPO is
# there to end.
#
# The divisor has to be the same for all. By default (loss_scale_factor null) it is the width of the loss mask, and the
# configuration says that this is response_length. In the default trainer (use_v1) rows are kept without padding, and
# the loss pads the rows of a micro-batch to the longest of them. So a token of a short answer weighs more the shorter
# its neighbours are, up to response_length over its length. ppo_micro_batch_size_per_gpu, use_dynamic_bsz and the order
# of rows, settings for memory, decide on it; long wrong answers are pushed down less again. Ranks differ too. The KL
# and entropy terms have the same divisor. The log shows a loss of a plausible size. The other modes do not depend on
# the split. With loss_scale_factor set, to response_length for example, the divisor is that number.
#
# Seen, on Python 3.11 without a GPU: a mini-batch of seven answers of 100 tokens and, as the last, one of 1,000; by
# what each is divided, from the gradient of its tokens
#   answers a micro-batch    first   fifth   seventh   last       with loss_scale_factor 4000
#   8                         1000    1000      1000   1000       4000    4000    4000    4000
#   4                          100    1000      1000   1000       4000    4000    4000    4000
#   2                          100     100      1000   1000       4000    4000    4000    4000
#   1                          100     100       100   1000       4000    4000    4000    4000
# Fails when this changes.
set -euo pipefail
lock=$(cd "$(dirname "$0")/.." && pwd)/requirements/cpu.txt
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

pinned() { grep -oE "^$1==[^ ;\\]*" "$lock"; }
python3 -m venv env
env/bin/pip install -qq --no-deps --no-compile "$(pinned torch)"
env/bin/pip install -qq --no-compile -U setuptools filelock typing-extensions sympy networkx jinja2 fsspec \
    "$(pinned numpy)" tensordict==0.15.3
env/bin/pip install -qq --no-compile --no-deps --target peers verl==0.9.1

cat >ask.py <<'EOF'
import ast
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Optional

import torch
import torch.nn.functional as F
from tensordict import TensorDict

given = dict.fromkeys(("ActorConfig", "CriticConfig", "AlgoConfig"), SimpleNamespace)
given["AlgoConfig"] = type(None)
given |= dict(torch=torch, F=F, TensorDict=TensorDict, Any=Any, Optional=Optional)
given["AggregationType"] = SimpleNamespace(SUM="sum", MEAN="mean")
given["Metric"] = type("Metric", (dict,), {"from_dict": staticmethod(lambda metrics, aggregation: metrics)})
given["tu"] = SimpleNamespace(get_non_tensor_data=lambda data, key, default: data.get(key, default))
given["verl_F"] = SimpleNamespace(
    masked_sum=lambda values, mask: (values * mask).sum(),
    masked_mean=lambda values, mask: (values * mask).sum() / mask.sum(),
)


def load(file, *names):
    """Of a module of a package whose other modules need a GPU's packages: what has these names."""
    for node in ast.parse(Path("peers/verl", file).read_text(encoding="utf-8")).body:
        if getattr(node, "name", None) in names:
            node.decorator_list = []
            exec(compile(ast.Module([node], []), file, "exec"), given)


load("trainer/ppo/core_algos.py", "agg_loss", "compute_policy_loss_vanilla")
load("workers/utils/padding.py", "no_padding_2_padding")
load("workers/utils/losses.py", "ppo_loss")
given["get_policy_loss_fn"] = lambda name: given["compute_policy_loss_vanilla"]


class Settings(SimpleNamespace):
    def get(self, name, default=None):
        return getattr(self, name, default)


def nested(rows):
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


PROMPT = 5
LENGTHS = [100] * 7 + [1000]
MINI_BATCH = dict(dp_size=1, batch_num_tokens=sum(LENGTHS), global_batch_size=len(LENGTHS))


def rows_of(lengths):
    """As the trainer keeps them: nested, without padding. No row's ratio is clipped, and each advantage is 1."""
    columns = dict(
        prompts=nested([torch.ones(PROMPT, dtype=torch.long) for _ in lengths]),
        responses=nested([torch.ones(length, dtype=torch.long) for length in lengths]),
        response_mask=nested([torch.ones(length) for length in lengths]),
        old_log_probs=nested([torch.full((length,), -1.0) for length in lengths]),
        advantages=nested([torch.ones(length) for length in lengths]),
    )
    data = TensorDict(columns, batch_size=len(lengths))
    for key, value in MINI_BATCH.items():
        data.set_non_tensor(key, value)
    return data


def divisors(size, factor):
    """By what each answer's sum is divided, beside the count of answers, with micro-batches of this size."""
    clip = dict(clip_ratio=0.2, clip_ratio_low=0.2, clip_ratio_high=0.2, clip_ratio_c=3.0)
    norm = dict(loss_agg_mode="seq-mean-token-sum-norm", loss_scale_factor=factor, global_batch_info={})
    settings = Settings(policy_loss={}, entropy_coeff=0.0, use_kl_loss=False, **clip, **norm)
    found = []
    for start in range(0, len(LENGTHS), size):
        lengths = LENGTHS[start : start + size]
        logprobs = [torch.full((PROMPT + length,), -1.0, requires_grad=True) for length in lengths]
        loss, _ = given["ppo_loss"](settings, {"log_probs": nested(logprobs)}, rows_of(lengths))
        loss.backward()
        found += [-1 / (len(LENGTHS) * row.grad[PROMPT].item()) for row in logprobs]
    return [f"{found[answer]:.0f}" for answer in (0, 4, 6, 7)]


for size in (8, 4, 2, 1):
    print(size, *divisors(size, None), "|", *divisors(size, 4000))
EOF
env/bin/python -W ignore ask.py 2>ask.log | tee seen || { tail ask.log; exit 1; }
diff seen - <<'EOF' || { echo "changed"; exit 1; }
8 1000 1000 1000 1000 | 4000 4000 4000 4000
4 100 1000 1000 1000 | 4000 4000 4000 4000
2 100 100 1000 1000 | 4000 4000 4000 4000
1 100 100 100 1000 | 4000 4000 4000 4000
EOF
echo "as stated: verl 0.9.1"
