#!/usr/bin/env bash
# tinker-cookbook 0.6.1: with kl_discount_factor above 0, on-policy distillation trains the model on the prompt and on
# what tools answered.
#
# A token's advantage is then the discounted sum of what comes after it, which is computed over all positions. Before
# the sum the others are masked; after it they are not, and have the sum of what the policy said later. The mask does
# not go to the trainer (_remove_mask), since advantages of 0 stand for it. There is no sampled log-prob for such a
# token, and 0 is recorded, so that importance_sampling takes the token's own probability for the ratio. What tools say
# is long, and nearly all of the gradient can be on it. Each of its tokens also counts as a step of the discount: a call
# hears less of what comes after a long answer. The figures in the log are masked, and show none of this. With 0, the
# default, nothing of the kind happens; the recipe's page offers the setting. RL's KL penalty has the same lines (by the
# source). Whoever uses it takes the sum over the tokens that were sampled, and leaves 0 at the others.
#
# Seen, on Python 3.11 without a GPU: a prompt of 20 tokens, a call of 10, a tool's answer of 100, an answer of 10; each
# sampled token has 0.5 nats more than the teacher gives it, and each other token probability 0.6. The gradient by
# log-probs, as absolute values added up, and the advantage of the call's last token: as sent, and over sampled tokens
#   factor   on the sampled   the prompt   the tool's answer   the call's last: sent   over sampled tokens
#   0.00              10.00         0.00                0.00                  -0.500                -0.500
#   0.90              41.38        15.21               17.59                  -0.500                -3.431
#   0.99              69.95        65.71              180.04                  -2.232                -5.233
#   1.00             105.00       114.00              300.00                  -5.500                -5.500
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
    "$(pinned numpy)" "$(pinned transformers)" tinker==0.38.0 chz aiohttp blobfile cloudpickle datasets pillow termcolor
env/bin/pip install -qq --no-compile --no-deps tinker-cookbook==0.6.1

cat >ask.py <<'EOF'
import asyncio
import math
from types import SimpleNamespace

import tinker
import torch
from tinker_cookbook.completers import TokensWithLogprobs
from tinker_cookbook.distillation.train_on_policy import incorporate_kl_penalty
from tinker_cookbook.rl.data_processing import trajectory_to_data
from tinker_cookbook.rl.train import _remove_mask
from tinker_cookbook.rl.types import Trajectory, Transition

PROMPT, CALL, TOOL, ANSWER = [1] * 20, [2] * 10, [3] * 100, [4] * 10
PROMPT_AT, CALL_ENDS, TOOL_AT = slice(0, 19), 28, slice(29, 129)  # of the targets, which begin with the second token
SAMPLED, TEACHER, OTHER = -0.5, -1.0, math.log(0.6)


class Teacher:
    def compute_logprobs(self, tokens):
        async def answer():
            return [None] + [TEACHER] * (tokens.length - 1)

        return SimpleNamespace(coroutine=answer)


def turn(seen, said, last):
    logprobs = TokensWithLogprobs(tokens=said, maybe_logprobs=[SAMPLED] * len(said))
    return Transition(ob=tinker.ModelInput.from_ints(seen), ac=logprobs, reward=0.0, episode_done=last)


turns = [turn(PROMPT, CALL, False), turn(PROMPT + CALL + TOOL, ANSWER, True)]
for factor in (0.0, 0.9, 0.99, 1.0):
    (row,) = trajectory_to_data(Trajectory(transitions=turns, final_ob=tinker.ModelInput.empty()), 0.0)
    asyncio.run(incorporate_kl_penalty([row], [Teacher()], [0], 1.0, factor))
    sampled = row.loss_fn_inputs["mask"].to_torch() > 0
    sent = _remove_mask(row).loss_fn_inputs
    assert sorted(sent) == ["advantages", "logprobs", "target_tokens"]
    advantages, old = sent["advantages"].to_torch(), sent["logprobs"].to_torch()
    now = torch.where(sampled, SAMPLED, OTHER).requires_grad_()
    (-(torch.exp(now - old) * advantages).sum()).backward()  # "importance_sampling", by its documentation
    size = now.grad.abs()
    parts = (size[sampled].sum(), size[PROMPT_AT].sum(), size[TOOL_AT].sum())
    meant = sum(-0.5 * factor**later for later in range(len(ANSWER) + 1))
    print(f"{factor:.2f}", *(f"{part:.2f}" for part in parts), f"{advantages[CALL_ENDS]:.3f} {meant:.3f}")
EOF
env/bin/python -W ignore ask.py 2>ask.log | tee seen || { tail ask.log; exit 1; }
diff seen - <<'EOF' || { echo "changed"; exit 1; }
0.00 10.00 0.00 0.00 -0.500 -0.500
0.90 41.38 15.21 17.59 -0.500 -3.431
0.99 69.95 65.71 180.04 -2.232 -5.233
1.00 105.00 114.00 300.00 -5.500 -5.500
EOF
echo "as stated: tinker-cookbook 0.6.1"
