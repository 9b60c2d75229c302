#!/usr/bin/env bash
# verl 0.9.1: with the policy loss geo_mean (GMPO) the gradient is as many times too large as a mini-batch is split into
# micro-batches, while the KL and entropy terms beside it are not.
#
# The engine adds the gradients of the micro-batches up, and each loss divides by the whole mini-batch's count
# (agg_loss with global_batch_info). geo_mean takes torch.mean over the rows at hand, and neither the count nor
# loss_agg_mode reaches it. So ppo_micro_batch_size_per_gpu, a setting for memory, is a factor of the policy's gradient:
# kl_loss_coef and entropy_coeff mean that much less beside it. With use_dynamic_bsz the factor is another in each step,
# by the lengths of the answers. Clipping by the norm hides it in the steps. Rows without a token that counts are in the
# mean as well. The loss in the log is the same sum.
#
# Seen, on Python 3.11 without a GPU: 16 answers of 32 tokens; the gradient's norm, over that of one micro-batch
#   micro-batches          1     2     4     8    16
#   geo_mean            1.00  2.00  4.00  8.00 16.00
#   vanilla             1.00  1.00  1.00  1.00  1.00
# Fails when this changes.
set -euo pipefail
lock=$(cd "$(dirname "$0")/.." && pwd)/requirements/cpu.txt
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

pinned() { grep -oE "^$1==[^ ;\\]*" "$lock"; }
python3 -m venv env
env/bin/pip install -qq --no-deps --no-compile "$(pinned torch)"
env/bin/pip install -qq --no-compile -U setuptools filelock typing-extensions sympy networkx jinja2 fsspec
env/bin/pip install -qq --no-compile --no-deps --target peers verl==0.9.1

cat >ask.py <<'EOF'
import ast
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Optional

import torch

FILE = Path("peers/verl/trainer/ppo/core_algos.py")  # whose other imports need a GPU's packages


class Settings(SimpleNamespace):
    def get(self, name, default=None):
        return getattr(self, name, default)


counted = SimpleNamespace(
    masked_sum=lambda values, mask: (values * mask).sum(),
    masked_mean=lambda values, mask: (values * mask).sum() / mask.sum(),
)
given = dict(torch=torch, Any=Any, Optional=Optional, verl_F=counted, ActorConfig=Settings, AlgoConfig=type(None))
for node in ast.parse(FILE.read_text(encoding="utf-8")).body:
    if getattr(node, "name", None) in ("agg_loss", "compute_policy_loss_geo_mean", "compute_policy_loss_vanilla"):
        node.decorator_list = []
        exec(compile(ast.Module([node], []), FILE, "exec"), given)

ROWS, LENGTH = 16, 32
torch.manual_seed(0)
mask = torch.ones(ROWS, LENGTH)
advantages = torch.randn(ROWS, 1).expand(ROWS, LENGTH)
old = -torch.rand(ROWS, LENGTH)
whole = dict(dp_size=1, batch_num_tokens=ROWS * LENGTH, global_batch_size=ROWS, loss_scale_factor=None)
settings = Settings(clip_ratio=0.2, clip_ratio_low=0.2, clip_ratio_high=0.2, clip_ratio_c=3.0, global_batch_info=whole)

for name in ("geo_mean", "vanilla"):
    norms = []
    for parts in (1, 2, 4, 8, 16):
        logprobs = old.clone().requires_grad_()
        for rows in torch.arange(ROWS).chunk(parts):
            loss, _ = given[f"compute_policy_loss_{name}"](
                old[rows], logprobs[rows], advantages[rows], mask[rows], "token-mean", settings
            )
            loss.backward()
        norms.append(logprobs.grad.norm().item())
    print(name, *(f"{norm / norms[0]:.2f}" for norm in norms))
EOF
env/bin/python -W ignore ask.py 2>ask.log | tee seen || { tail ask.log; exit 1; }
diff seen - <<'EOF' || { echo "changed"; exit 1; }
geo_mean 1.00 2.00 4.00 8.00 16.00
vanilla 1.00 1.00 1.00 1.00 1.00
EOF
echo "as stated: verl 0.9.1"
