#!/usr/bin/env bash
# transformers 5.19.0: a GenerationConfig that is handed to `generate` is filled up from the model's own, so that plain
# sampling (temperature 1, top_p 1, top_k 0) is not plain where the model's generation_config.json has more.
#
# The documentation of `generate` says that what such a configuration leaves open gets the default values, and the
# model's file is for calls without one. In version 5 the open fields are None, and the model's values go into them:
# repetition_penalty, as many published models ship it (Qwen 2.5 Instruct), min_p, typical_p, epsilon_cutoff,
# suppress_tokens. None given by hand is open too. Training on one's own samples then learns from text that the policy
# would not have drawn so often, and log-probs from a forward pass are not those of the draw. A field is closed by its
# neutral value (repetition_penalty 1.0, min_p 0.0), or by changing model.generation_config.
#
# Seen, on Python 3.11 without a GPU: a random Llama of 16 tokens, a prompt of four of them, plain sampling of the next
# token 20,000 times; how often it is one of the prompt's, to which the model's logits give 0.551
#   the model's file          drawn    computed from the logits with it
#   has nothing               0.55     0.551
#   repetition_penalty 1.5    0.28     0.273
#     None given              0.28     0.273
#     1.0 given               0.55     0.551
#   min_p 0.2                 0.82     0.820
#     0.0 given               0.55     0.551
# Fails when this changes.
set -euo pipefail
lock=$(cd "$(dirname "$0")/.." && pwd)/requirements/cpu.txt
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

python3 -m venv env
env/bin/pip install -qq --no-deps --no-compile "$(grep -oE '^torch==[^ ;\\]*' "$lock")"
env/bin/pip install -qq --no-compile -U setuptools filelock typing-extensions sympy networkx jinja2 fsspec
env/bin/pip install -qq --no-compile "$(grep -oE '^transformers==[^ ;\\]*' "$lock")"
env/bin/pip list 2>/dev/null | grep -E '^(transformers|torch) '

cat >ask.py <<'EOF'
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

DRAWS = 20_000
PLAIN = dict(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=1)
torch.manual_seed(3)
sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=4)
sizes |= dict(vocab_size=16, pad_token_id=0, eos_token_id=None, initializer_range=0.3)
model = LlamaForCausalLM(LlamaConfig(**sizes)).eval()
prompt = torch.tensor([[1, 2, 3, 4]])
with torch.no_grad():
    logits = model(prompt).logits[0, -1].double()


def expected(penalty=1.0, floor=0.0):
    """The probability of the prompt's tokens, from the logits."""
    own = logits.clone()
    own[1:5] = torch.where(own[1:5] < 0, own[1:5] * penalty, own[1:5] / penalty)
    probabilities = own.softmax(-1)
    probabilities[probabilities < floor * probabilities.max()] = 0
    return (probabilities[1:5].sum() / probabilities.sum()).item()


def drawn(**more):
    torch.manual_seed(0)
    tokens = model.generate(prompt.repeat(DRAWS, 1), generation_config=GenerationConfig(**PLAIN, **more))[:, 4]
    return ((tokens >= 1) & (tokens <= 4)).double().mean().item()


def say(what, found, **by):
    print(f"{what}: drawn {found:.3f}, from the logits {expected(**by):.3f}, without {expected():.3f}")
    assert abs(found - expected(**by)) < 0.0125, "no such draw"  # 3.5 standard errors


say("the model has nothing", drawn())
model.generation_config.repetition_penalty = 1.5
say("repetition_penalty 1.5", drawn(), penalty=1.5)
say("repetition_penalty 1.5, None given", drawn(repetition_penalty=None), penalty=1.5)
say("repetition_penalty 1.5, 1.0 given", drawn(repetition_penalty=1.0))
model.generation_config.repetition_penalty, model.generation_config.min_p = None, 0.2
say("min_p 0.2", drawn(), floor=0.2)
say("min_p 0.2, 0.0 given", drawn(min_p=0.0))
EOF
env/bin/python -W ignore ask.py 2>ask.log | tee seen || { tail ask.log; exit 1; }
diff <(sed 's/ drawn [0-9.]*,//' seen) - <<'EOF' || { echo "changed"; exit 1; }
the model has nothing: from the logits 0.551, without 0.551
repetition_penalty 1.5: from the logits 0.273, without 0.551
repetition_penalty 1.5, None given: from the logits 0.273, without 0.551
repetition_penalty 1.5, 1.0 given: from the logits 0.551, without 0.551
min_p 0.2: from the logits 0.820, without 0.551
min_p 0.2, 0.0 given: from the logits 0.551, without 0.551
EOF
echo "as stated: transformers 5.19.0"
