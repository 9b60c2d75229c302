#!/usr/bin/env bash
# TRL 1.16.0 with transformers 5.19.0: OnlineDPOTrainer's gradient grows with gradient_accumulation_steps, and the loss
# in its log does not show it.
#
# The trainer has a training_step of its own. It takes the gradient of each micro-batch's mean, and divides by the
# number of micro-batches only what it returns for the log. accelerate could divide too, but transformers makes it with
# one step. So the gradients of a step are added up where DPOTrainer averages them: eight micro-batches of a row have
# eight times the gradient of one. With SGD that is eight times the learning rate. Adam hides a constant factor, though
# not from clipping: with the default max_grad_norm of 1.0 it depends on how a batch is split for memory which steps are
# clipped. Whoever compares settings has to divide the gradient's norm by the steps, and multiply max_grad_norm by them.
#
# Seen, on Python 3.11 without a GPU: rows that are all the same, with the same random numbers in each micro-batch; the
# gradient's norm as a part of that of one row alone, and the loss in the log
#   micro-batches of one row   1              2              8
#   DPOTrainer                 1.00  0.6931   1.00  0.6931   1.00  0.6931
#   OnlineDPOTrainer           1.00  0.6931   2.00  0.6931   8.00  0.6931
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
    "$(pinned accelerate)" datasets==5.2.0 trl==1.16.0
env/bin/pip list 2>/dev/null | grep -E '^(trl|transformers|accelerate|torch) '

cat >ask.py <<'EOF'
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer
from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

SIZES = dict(
    vocab_size=258, eos_token_id=256, pad_token_id=257, bos_token_id=None, hidden_size=32, intermediate_size=48,
    num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=4,
)


def tokenizer():
    words = {letter: place for place, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE(vocab=words | {"<end>": 256, "<pad>": 257}, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", pad_token="<pad>", padding_side="left")


def model(seed):
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**SIZES))


def seeded(trainer):
    """The trainer, with the same random numbers in each forward and backward: the micro-batches are all the same."""

    class Seeded(trainer):
        def training_step(self, *inputs, **more):
            torch.manual_seed(1)
            return super().training_step(*inputs, **more)

    return Seeded


def letters_e(completions, **more):
    return [float(completion.count("e") + len(completion) / 100) for completion in completions]


def trained(trainer, config, row, given, more, accumulate):
    arguments = config(
        output_dir="run", per_device_train_batch_size=1, gradient_accumulation_steps=accumulate, max_steps=1, seed=1,
        logging_steps=1, report_to=[], use_cpu=True, bf16=False, gradient_checkpointing=False, save_strategy="no",
        disable_tqdm=True, **more,
    )
    data = Dataset.from_list([row] * accumulate)
    made = seeded(trainer)(model(0), args=arguments, train_dataset=data, processing_class=tokenizer(), **given)
    made.train()
    log = made.state.log_history[0]
    return float(log["loss"]), float(log["grad_norm"])


PAIR = {"prompt": "hello there", "chosen": " general", "rejected": " nobody"}
ASKED = {
    "DPO": (DPOTrainer, DPOConfig, PAIR, {"ref_model": model(0)}, {}),
    "Online DPO": (
        OnlineDPOTrainer, OnlineDPOConfig, {"prompt": "hello there"}, {"reward_funcs": letters_e},
        {"max_new_tokens": 8},
    ),
}
for name, asked in ASKED.items():
    one = trained(*asked, 1)
    for accumulate in (1, 2, 8):
        loss, gradient = trained(*asked, accumulate)
        print(f"{name}, {accumulate} a step: loss in the log {loss:.4f}, gradient {gradient / one[1]:.2f}")
EOF
export HOME="$folder"
env/bin/python -W ignore ask.py 2>ask.log | grep -E '^[A-Z][A-Za-z ]*, [0-9] a' | tee seen || { tail ask.log; exit 1; }
diff seen - <<'EOF' || { echo "changed"; tail ask.log; exit 1; }
DPO, 1 a step: loss in the log 0.6931, gradient 1.00
DPO, 2 a step: loss in the log 0.6931, gradient 1.00
DPO, 8 a step: loss in the log 0.6931, gradient 1.00
Online DPO, 1 a step: loss in the log 0.6931, gradient 1.00
Online DPO, 2 a step: loss in the log 0.6931, gradient 2.00
Online DPO, 8 a step: loss in the log 0.6931, gradient 8.00
EOF
echo "as stated: TRL 1.16.0, transformers 5.19.0, accelerate 1.15.0"
