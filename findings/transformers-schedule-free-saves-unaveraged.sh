#!/usr/bin/env bash
# transformers 5.19.0 with schedulefree 1.4.1: whether Trainer saves the trained model or the point at which the last
# gradient was taken depends on whether an evaluation came just before.
#
# With optim "schedule_free_adamw" a model has two sets of weights: those of training, and their average, which is the
# result and takes the place of a decaying rate. Which of them the model holds is switched by the optimizer's train()
# and eval(). Trainer calls the first in each step and the second where it evaluates, and not where it saves. So
# checkpoints, save_model after train() and what is pushed have the weights of training, unless the last thing that ran
# was an evaluation, as with eval_strategy and save_strategy of the same steps. Then a run that differs from another in
# its evaluations only saves another model, and an evaluation after save_model reports a loss that the saved file does
# not have. Nothing warns. Before saving, trainer.optimizer.eval() has to be called; accelerate's wrapper passes it on.
#
# Seen, on Python 3.11 without a GPU: a small Llama, 12 steps; the largest difference of a weight in a file from the
# average, after the same training
#                                     checkpoint     save_model
#   without evaluation                > 0.001        > 0.001
#   with one at the last step         0              0
#   without, optimizer.eval()                        0
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
    "$(pinned accelerate)" schedulefree==1.4.1
env/bin/pip list 2>/dev/null | grep -E '^(schedulefree|transformers|accelerate|torch) '

cat >ask.py <<'EOF'
import sys

import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

SIZES = dict(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
    num_key_value_heads=4,
)
ids = torch.randint(0, 64, (48, 12), generator=torch.Generator().manual_seed(0))
ROWS = [{"input_ids": row, "labels": row} for row in ids]


def trained(evaluate):
    torch.manual_seed(0)
    folder = f"out-{evaluate}"
    settings = TrainingArguments(
        folder, per_device_train_batch_size=4, max_steps=12, optim="schedule_free_adamw", learning_rate=0.01,
        lr_scheduler_type="constant", save_steps=12, eval_strategy="steps" if evaluate else "no", eval_steps=12,
        use_cpu=True, report_to=[], disable_tqdm=True,
    )
    trainer = Trainer(LlamaForCausalLM(LlamaConfig(**SIZES)), settings, train_dataset=ROWS, eval_dataset=ROWS[:8])
    trainer.train()
    trainer.save_model(f"{folder}/saved")
    return trainer, folder


def averages(trainer):
    trainer.optimizer.eval()
    return {name: one.detach().clone() for name, one in trainer.model.named_parameters()}


def told(folder, right):
    saved = load_file(f"{folder}/model.safetensors")
    off = max((saved[name] - one).abs().max().item() for name, one in right.items())
    print(folder, off, file=sys.stderr)
    return "0" if off == 0 else "> 0.001" if off > 0.001 else "unclear"


found = {}
for evaluate in (False, True):
    trainer, folder = trained(evaluate)
    right = found[evaluate] = averages(trainer)
    files = told(f"{folder}/checkpoint-12", right), told(f"{folder}/saved", right)
    print(f"evaluation {evaluate}: checkpoint {files[0]}, save_model {files[1]}")
    if not evaluate:
        trainer.save_model(f"{folder}/after")
        print(f"evaluation {evaluate}, optimizer.eval(): save_model {told(folder + '/after', right)}")
print("the same training:", max((found[True][n] - one).abs().max().item() for n, one in found[False].items()) < 1e-6)
EOF
export HOME="$folder"
env/bin/python -W ignore ask.py 2>ask.log | grep -E '^(evaluation|the same) ' | tee seen || { tail ask.log; exit 1; }
diff seen - <<'EOF' || { echo "changed"; tail ask.log; exit 1; }
evaluation False: checkpoint > 0.001, save_model > 0.001
evaluation False, optimizer.eval(): save_model 0
evaluation True: checkpoint 0, save_model 0
the same training: True
EOF
grep -E '^out-' ask.log
echo "as stated: transformers 5.19.0, schedulefree 1.4.1"
