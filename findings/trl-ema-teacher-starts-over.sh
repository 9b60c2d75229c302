#!/usr/bin/env bash
# TRL 1.16.0: SDFT's EMA teacher is not in the checkpoint, so that a resumed run distils from the base model again; and
# with LoRA the teacher is the square of an average.
#
# teacher_model_kind "ema" keeps a second model, which follows the student by teacher_update_rate (0.05 by default) in
# each step. A checkpoint holds the student, its optimizer and the step. On a resume the teacher is loaded from the
# model's path, as in step 0, while the student goes on from where it was: there is no error, and no figure in the log
# says so. With LoRA a resume ends with a ValueError, since the checkpoint's own adapter "teacher" is there already.
# That teacher's two factors are averages that both begin at zero, A as well, though the student's A does not. Their
# product follows with the square of the rate: after one step of 0.1 it has 0.01 of the student's update.
#
# Seen, on Python 3.11 without a GPU: a small Llama, rate 0.1; the teacher's way from the base model as a part of the
# student's, and that of the average of the student, computed here from what it was after each step
#                             teacher   average
#   step 4                      0.261     0.261
#   step 5 of a whole run       0.308     0.308
#   step 5 of a resumed run     0.100     0.308
#   LoRA, step 1                0.010     0.100
#   LoRA, step 4                0.081     0.239
#   LoRA, resumed               ValueError: Adapter with name 'teacher' already exists.
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
    "$(pinned accelerate)" "$(pinned peft)" datasets==5.2.0 trl==1.16.0
env/bin/pip list 2>/dev/null | grep -E '^(trl|peft|transformers|torch) '

cat >ask.py <<'EOF'
import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl.experimental.sdft import SDFTConfig, SDFTTrainer

RATE = 0.1
letters = {letter: place for place, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
made = Tokenizer(models.BPE(vocab=letters | {"<end>": 256, "<pad>": 257}, merges=[]))
made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", pad_token="<pad>", padding_side="left")
tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
torch.manual_seed(0)
sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=4)
base = LlamaForCausalLM(LlamaConfig(vocab_size=258, eos_token_id=256, pad_token_id=257, **sizes))
base.save_pretrained("base")
tokenizer.save_pretrained("base")
data = Dataset.from_list([{"prompt": f"hello {number}", "privileged_context": "be a bird"} for number in range(64)])


def flat(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


class Watch(TrainerCallback):
    """After each step: how far the student and the teacher are from the base, and the average of the student's ways."""

    def __init__(self, trainer, average):
        self.trainer, self.average, self.seen = trainer, average, {}

    def away(self, who):
        if not hasattr(self.trainer.model, "peft_config"):
            model = self.trainer.model if who == "default" else self.trainer.teacher_model
            return flat(model.parameters()) - flat(base.parameters())
        named = list(self.trainer.model.named_parameters())
        factors = ([one for name, one in named if f"lora_{letter}.{who}." in name] for letter in "BA")
        return flat(b @ a for b, a in zip(*factors, strict=True))

    def on_step_end(self, args, state, control, **more):
        student, teacher = self.away("default"), self.away("teacher")
        self.average = (1 - RATE) * self.average + RATE * student
        self.seen[state.global_step] = [one.norm().item() for one in (student, teacher, self.average)]


def run(folder, steps, average=0.0, resume=None, lora=None):
    config = SDFTConfig(
        output_dir=folder, max_steps=steps, save_steps=4, per_device_train_batch_size=2, num_generations=1, seed=1,
        max_completion_length=8, learning_rate=1e-2, lr_scheduler_type="constant", teacher_model_kind="ema",
        teacher_update_rate=RATE, report_to=[], use_cpu=True, bf16=False, gradient_checkpointing=False,
        disable_tqdm=True,
    )
    trainer = SDFTTrainer("base", args=config, train_dataset=data, processing_class=tokenizer, peft_config=lora)
    watch = Watch(trainer, average)
    trainer.add_callback(watch)
    trainer.train(resume_from_checkpoint=resume)
    return watch


def say(what, numbers):
    student, teacher, average = numbers
    print(f"{what}: the teacher has {teacher / student:.3f} of the student's way, its average {average / student:.3f}")


whole = run("whole", 5)
say("step 5 of a whole run", whole.seen[5])
part = run("part", 4)
say("step 4", part.seen[4])
say("step 5 of a resumed run", run("part", 5, part.average, "part/checkpoint-4").seen[5])
lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
adapted = run("adapted", 4, lora=lora)
for step in (1, 4):
    say(f"LoRA, step {step}", adapted.seen[step])
try:
    run("adapted", 5, resume="adapted/checkpoint-4", lora=lora)
except ValueError as error:
    print("LoRA, resumed:", error)
EOF
export HOME="$folder"
env/bin/python -W ignore ask.py 2>ask.log | grep -E '^(step|LoRA)' | tee seen || { tail ask.log; exit 1; }
diff seen - <<'EOF' || { echo "changed"; tail ask.log; exit 1; }
step 5 of a whole run: the teacher has 0.308 of the student's way, its average 0.308
step 4: the teacher has 0.261 of the student's way, its average 0.261
step 5 of a resumed run: the teacher has 0.100 of the student's way, its average 0.308
LoRA, step 1: the teacher has 0.010 of the student's way, its average 0.100
LoRA, step 4: the teacher has 0.081 of the student's way, its average 0.239
LoRA, resumed: Adapter with name 'teacher' already exists.
EOF
echo "as stated: TRL 1.16.0, transformers 5.19.0, peft 0.21.2"
