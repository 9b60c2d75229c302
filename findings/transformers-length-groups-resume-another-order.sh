#!/usr/bin/env bash
# transformers 5.19.0 with accelerate 1.15.0: with train_sampling_strategy "group_by_length", a run that is resumed
# after its first epoch goes on in another order, so that rows of that epoch are seen twice and others not at all.
#
# A resume skips the batches that were seen, which takes the same order as before. For "random" accelerate puts in a
# sampler whose seed is the run's and the epoch. LengthGroupedSampler has no generator: it draws from torch's own random
# numbers whenever an epoch begins, and these have a state that depends on all that was drawn before. The state in the
# checkpoint is the one of the step and is put back after the batches were skipped. In the first epoch the order is
# right, since nothing was drawn before it, so that a short test passes. Nothing warns, the step and the epoch in the
# log go on as they should, and on many resumes a data set is no longer gone through evenly. "batch_rebalance" has a
# generator of its own and is resumed as it was.
#
# Seen, on Python 3.11 without a GPU: 32 rows, 8 steps an epoch, a checkpoint in the middle of either epoch; whether the
# rest comes in the order of the run without a break, and of that epoch's 32 rows those seen twice (as many not at all)
#                       in epoch 1         in epoch 2
#   random              same order, 0      same order, 0
#   group_by_length     same order, 0      another, 6
#   batch_rebalance     same order, 0      same order, 0
# Fails when this changes.
set -euo pipefail
lock=$(cd "$(dirname "$0")/.." && pwd)/requirements/cpu.txt
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

pinned() { grep -oE "^$1==[^ ;\\]*" "$lock"; }
python3 -m venv env
env/bin/pip install -qq --no-deps --no-compile "$(pinned torch)"
env/bin/pip install -qq --no-compile -U setuptools sympy networkx jinja2 "$(pinned transformers)" \
    "$(pinned accelerate)"
env/bin/pip list 2>/dev/null | grep -E '^(transformers|accelerate|torch) '

cat >ask.py <<'EOF'
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

SIZES = dict(
    vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=2,
)
ROWS = [{"input_ids": [number % 64] * (4 + number * 7 % 13), "number": number} for number in range(32)]


def seen(strategy, resume):
    """The numbers of the rows in the order in which they were handed to the model."""
    order = []

    def collate(rows):
        order.extend(row["number"] for row in rows)
        longest = max(len(row["input_ids"]) for row in rows)
        ids = torch.tensor([row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in rows])
        return {"input_ids": ids, "labels": ids}

    torch.manual_seed(0)
    settings = TrainingArguments(
        strategy, per_device_train_batch_size=4, num_train_epochs=2, train_sampling_strategy=strategy, save_steps=4,
        use_cpu=True, report_to=[], disable_tqdm=True, remove_unused_columns=False,
    )
    trainer = Trainer(LlamaForCausalLM(LlamaConfig(**SIZES)), settings, train_dataset=ROWS, data_collator=collate)
    trainer.train(resume_from_checkpoint=resume)
    return order


for strategy in ("random", "group_by_length", "batch_rebalance"):
    whole = seen(strategy, None)
    assert sorted(whole[:32]) == sorted(whole[32:]) == list(range(32))
    for epoch, step in ((1, 4), (2, 12)):
        rest = seen(strategy, f"{strategy}/checkpoint-{step}")
        due = whole[4 * step :]
        twice = set(whole[32 * (epoch - 1) : 4 * step]) & set(rest[:16])
        same = "the same order" if rest == due else "another"
        print(f"{strategy}, resumed in epoch {epoch}: {same}, {len(twice)} of its rows seen twice")
EOF
export HOME="$folder"
env/bin/python -W ignore ask.py 2>ask.log | grep -E ', resumed in ' | tee seen || { tail ask.log; exit 1; }
diff seen - <<'EOF' || { echo "changed"; tail ask.log; exit 1; }
random, resumed in epoch 1: the same order, 0 of its rows seen twice
random, resumed in epoch 2: the same order, 0 of its rows seen twice
group_by_length, resumed in epoch 1: the same order, 0 of its rows seen twice
group_by_length, resumed in epoch 2: another, 6 of its rows seen twice
batch_rebalance, resumed in epoch 1: the same order, 0 of its rows seen twice
batch_rebalance, resumed in epoch 2: the same order, 0 of its rows seen twice
EOF
echo "as stated: transformers 5.19.0, accelerate 1.15.0"
