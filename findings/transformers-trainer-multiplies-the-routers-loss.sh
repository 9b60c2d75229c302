#!/usr/bin/env bash
# transformers 5.19.0 with accelerate 1.15.0: in a mixture of experts, gradient_accumulation_steps multiplies the
# router's balancing loss: with eight micro-batches router_aux_loss_coef 0.02 is 0.16.
#
# Trainer hands the model the number of labels in the whole step, so that the token losses of the micro-batches add up
# to the step's mean, and in return divides nothing by the number of micro-batches. The balancing loss is a mean over
# the micro-batch, and the model adds it to the quotient as it is: it is added up. With data parallelism the loss is
# also multiplied by the number of processes, to undo the mean over them, and so is the balancing loss (by the source;
# not run here). So the coefficient depends on how a batch is split for memory: the same batch on smaller cards balances
# harder. The loss in the log has the same sum in it, and looks worse the finer a batch is split. It concerns the models
# that add the loss themselves, with output_router_logits. Nothing warns. loss_is_scaled_for_ga would divide the token
# losses too: whoever accumulates has to divide router_aux_loss_coef by the micro-batches instead.
#
# Seen, on Python 3.11 without a GPU: a small Mixtral, one row eight times, split in three ways; the gradient's length
# with SGD as a part of that in one micro-batch, and what the coefficient 0.02 adds to the loss in the log
#   micro-batches a step      1              2              8
#   of the token losses       1.00           1.00           1.00
#   of the balancing loss     1.00  0.040    2.00  0.080    8.00  0.320
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
from transformers import MixtralConfig, MixtralForCausalLM, Trainer, TrainingArguments

SIZES = dict(
    vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=4, num_local_experts=4, num_experts_per_tok=2, output_router_logits=True,
)
row = torch.randint(0, 64, (16,), generator=torch.Generator().manual_seed(0))
ROWS = [{"input_ids": row, "labels": row} for _ in range(8)]


def trained(coefficient, accumulate):
    """The gradient of one step, which is what SGD at a rate of 1 takes off the weights, and the loss in the log."""
    torch.manual_seed(0)
    model = MixtralForCausalLM(MixtralConfig(router_aux_loss_coef=coefficient, **SIZES))
    before = [one.detach().clone() for one in model.parameters()]
    settings = TrainingArguments(
        "out", per_device_train_batch_size=8 // accumulate, gradient_accumulation_steps=accumulate, max_steps=1,
        optim="sgd", learning_rate=1.0, lr_scheduler_type="constant", max_grad_norm=0.0, logging_steps=1, use_cpu=True,
        report_to=[], save_strategy="no", disable_tqdm=True,
    )
    trainer = Trainer(model, settings, train_dataset=ROWS)
    trainer.train()
    taken = torch.cat([(old - new.detach()).flatten() for old, new in zip(before, model.parameters())])
    return taken, trainer.state.log_history[0]["loss"]


whole = None
for accumulate in (1, 2, 8):
    tokens, plain = trained(0.0, accumulate)
    both, loss = trained(0.02, accumulate)
    lengths = torch.stack([tokens.norm(), (both - tokens).norm()])
    whole = lengths if whole is None else whole
    of_tokens, of_router = (lengths / whole).tolist()
    print(f"{accumulate} a step: tokens {of_tokens:.2f}, router {of_router:.2f}, in the log {loss - plain:.3f}")
EOF
export HOME="$folder"
env/bin/python -W ignore ask.py 2>ask.log | grep -E '^[0-9] a step' | tee seen || { tail ask.log; exit 1; }
diff seen - <<'EOF' || { echo "changed"; tail ask.log; exit 1; }
1 a step: tokens 1.00, router 1.00, in the log 0.040
2 a step: tokens 1.00, router 2.00, in the log 0.080
8 a step: tokens 1.00, router 8.00, in the log 0.320
EOF
echo "as stated: transformers 5.19.0, accelerate 1.15.0"
