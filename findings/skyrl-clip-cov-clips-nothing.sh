#!/usr/bin/env bash
# SkyRL 0.3.0: the policy loss clip_cov clips nothing, and the KL penalty of kl_cov is as many times too strong as a
# mini-batch has tokens.
#
# A mean over tokens is made beforehand here: the trainer divides the advantages by the number of tokens, and a loss
# adds up. A loss that is linear in the advantages notices nothing. These two are not. clip_cov leaves out some tokens
# whose covariance of advantage and log-prob lies between 1 and 5. With advantages that were divided by 30,000 no
# token's does, and what remains is the ordinary clipped loss under the other name. kl_cov adds ppo_kl_coef |log ratio|
# to a fifth of the tokens, which nothing divides: the gradient is then the penalty's alone, the more so the larger a
# batch is, and max_grad_norm hides its size. Where a log ratio is exactly 0, as in the first step on a batch, the
# penalty has no gradient. The log shows a clip_ratio of 0 for clip_cov, and for kl_cov always. The other reductions
# divide beforehand as well. verl has the same two losses and divides what they return.
#
# Seen, on Python 3.11 without a GPU: answers of 512 tokens, half of the advantages 1 and half -1, log-probs moved by
# 0.01, one and the same setting in both libraries
#                                  rows   SkyRL: as its trainer hands them on   advantages as they are   verl
#   clip_cov, tokens left out         8     0                                    1                        1
#   clip_cov, tokens left out        64     0                                    6                        6
#   kl_cov, a token's gradient by     8     4093.1                               1.0                      1.0
#   the penalty over its own         64     32774.0                              1.0                      1.0
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
    "$(pinned numpy)"
env/bin/pip install -qq --no-compile --no-deps --target peers skyrl==0.3.0 verl==0.9.1

cat >ask.py <<'EOF'
import ast
from pathlib import Path
from types import SimpleNamespace as Settings
from typing import Any, List, Optional, Tuple

import torch


def load(file, *names, inside=None, **given):
    """Of a module of a package whose other modules need a GPU's packages: what has these names."""
    given = dict(torch=torch, Any=Any, List=List, Optional=Optional, Tuple=Tuple) | given
    nodes = ast.parse(Path("peers", file).read_text(encoding="utf-8")).body
    if inside:
        nodes = next(node for node in nodes if getattr(node, "name", None) == inside).body
    for node in nodes:
        if getattr(node, "name", None) in names:
            node.decorator_list = []
            exec(compile(ast.Module([node], []), file, "exec"), given)
    return [given[name] for name in names]


FOLDER = "skyrl/backends/skyrl_train/utils"
(masked_mean,) = load(f"{FOLDER}/torch_utils.py", "masked_mean")
reduction, _, *SKYRL = load(
    f"{FOLDER}/ppo_utils.py",
    "apply_loss_reduction_to_advantages_minibatch",
    "reduce_loss",
    "compute_policy_loss_clip_cov",
    "compute_policy_loss_kl_cov",
    masked_mean=masked_mean,
    AlgorithmConfig=Any,
)
(hand_on,) = load(
    "skyrl/train/trainer.py",
    "_normalize_advantages",
    inside="RayPPOTrainer",
    TrainingInputBatch=Any,
    apply_loss_reduction_to_advantages_minibatch=reduction,
)
counted = Settings(
    masked_sum=lambda values, mask: (values * mask).sum(),
    masked_mean=lambda values, mask: (values * mask).sum() / mask.sum(),
)
_, *VERL = load(
    "verl/trainer/ppo/core_algos.py",
    "agg_loss",
    "compute_policy_loss_clip_cov",
    "compute_policy_loss_kl_cov",
    verl_F=counted,
    ActorConfig=Settings,
    AlgoConfig=type(None),
)


class Batch(dict):
    def __getitem__(self, key):
        if isinstance(key, slice):
            return Batch({name: value[key] for name, value in self.items()})
        return super().__getitem__(key)


def trainers(advantages, mask):
    algorithm = Settings(advantage_batch_normalize=False, loss_reduction="token_mean", max_seq_len=None)
    trainer = Settings(cfg=Settings(trainer=Settings(algorithm=algorithm, micro_train_batch_size_per_gpu=4)))
    batch = Batch(advantages=advantages, response_mask=mask, loss_mask=mask)
    return hand_on(trainer, batch, [(0, len(mask))])["advantages"]


ours = Settings(
    clip_cov=Settings(clip_ratio=0.0002, clip_cov_lb=1.0, clip_cov_ub=5.0),
    kl_cov=Settings(kl_cov_frac=0.2, ppo_kl_coef=1.0),
    eps_clip_low=0.2,
    eps_clip_high=0.2,
)
theirs = Settings(
    policy_loss=Settings(clip_cov_ratio=0.0002, clip_cov_lb=1.0, clip_cov_ub=5.0, kl_cov_ratio=0.2, ppo_kl_coef=1.0),
    clip_ratio=0.2,
    clip_ratio_low=0.2,
    clip_ratio_high=0.2,
    global_batch_info={},
)



def gradient(loss, verl, now, before, given, mask):
    logprobs = now.clone().requires_grad_()
    if verl:
        value, _ = loss(before, logprobs, given, mask, "token-mean", theirs)
    else:
        value, _ = loss(logprobs, before, given, ours, mask)
    value.backward()
    return logprobs.grad


for rows in (8, 64):
    torch.manual_seed(0)
    mask = torch.ones(rows, 512)
    advantages = torch.where(torch.arange(rows) % 2 == 0, 1.0, -1.0).unsqueeze(1).expand(rows, 512).contiguous()
    now = -torch.empty(rows, 512).exponential_()
    before = now + 0.01 * torch.randn(rows, 512)
    left_out, over = [], []
    cases = ((SKYRL, trainers(advantages, mask), False), (SKYRL, advantages, False), (VERL, advantages, True))
    for (clip_cov, kl_cov), given, verl in cases:
        left_out.append((gradient(clip_cov, verl, now, before, given, mask) == 0).sum().item())
        own = -given * (now - before).exp() / (mask.sum() if verl else 1)
        penalty = (gradient(kl_cov, verl, now, before, given, mask) - own).abs()
        of = penalty > own.abs() / 2
        over.append(round((penalty[of] / own.abs()[of]).mean().item(), 1))
    print(f"{rows} rows: clip_cov leaves out {left_out}, kl_cov's penalty over the token's own {over}")
EOF
env/bin/python -W ignore ask.py 2>ask.log | tee seen || { tail ask.log; exit 1; }
diff seen - <<'EOF' || { echo "changed"; exit 1; }
8 rows: clip_cov leaves out [0, 1, 1], kl_cov's penalty over the token's own [4093.1, 1.0, 1.0]
64 rows: clip_cov leaves out [0, 6, 6], kl_cov's penalty over the token's own [32774.0, 1.0, 1.0]
EOF
echo "as stated: SkyRL 0.3.0, verl 0.9.1"
