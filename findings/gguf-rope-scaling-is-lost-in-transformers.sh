#!/usr/bin/env bash
# transformers 5.19.0 with gguf 0.19.0: a Llama or Qwen 2 that is read from a GGUF file has no rope scaling, whatever
# the file says.
#
# llama.cpp's converter writes the scaling in one of two ways: Llama 3.1's as a tensor of factors, rope_freqs.weight,
# and the others as the keys rope.scaling.type, .factor and .original_context_length. from_pretrained with gguf_file
# reads neither: the config says "default", and positions turn by the unscaled frequencies, while
# max_position_embeddings is the long one. With Llama 3.1 a short prompt looks right, since the scaling touches the slow
# frequencies, and a long one goes wrong. A teacher, a reference or a base for training that was dequantised in this way
# is another model, and saving it writes the wrong config for every other reader. The keys that were not read are named
# at level "info", and the tensor is not. Whoever reads such a file needs the config.json of the model it was made of.
#
# Seen, on Python 3.11 without a GPU: random models of one layer, written in float32 and read; the frequencies that the
# model has as parts of those that were read, and the mean distance of log-probs over the first and the last 16 of 1,024
# tokens, in nats
#                            type read   frequencies      first 16   last 16
#   Llama 3.1, scaled        default     0.125 to 1.000   0.004      0.423
#   Llama 3.1, unscaled      default     1.000            0.000      0.000
#   Qwen 2, yarn             default     0.250 to 1.000   0.144      0.482
#   Qwen 2, unscaled         default     1.000            0.000      0.000
#   Llama, linear            default     0.125            0.986      1.552
#   Llama, unscaled          default     1.000            0.000      0.000
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
    "$(pinned accelerate)" "$(pinned gguf)"
env/bin/pip list 2>/dev/null | grep -E '^(transformers|gguf|torch) '

cat >ask.py <<'EOF'
import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

HEADS, SIZE, LONG = 4, 64, 1024
SIZES = dict(
    vocab_size=64, hidden_size=HEADS * SIZE, intermediate_size=256, num_hidden_layers=1, num_attention_heads=HEADS,
    num_key_value_heads=HEADS, max_position_embeddings=131072, rms_norm_eps=1e-5, initializer_range=0.1,
    tie_word_embeddings=False,
)
LLAMA3 = dict(
    rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=8192,
)
YARN = dict(rope_type="yarn", rope_theta=1000000.0, factor=4.0, original_max_position_embeddings=32768)
LINEAR = dict(rope_type="linear", rope_theta=10000.0, factor=8.0)


def write(model, arch, rope, scaling):
    """The model as llama.cpp's converter lays it out: names, rows of Llama's rotated heads, the scaling's own keys."""
    writer = gguf.GGUFWriter("model.gguf", gguf.MODEL_ARCH_NAMES[arch])
    config = model.config
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_key_length(SIZE)
    writer.add_value_length(SIZE)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(SIZE)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    if scaling and rope["rope_type"] == "llama3":
        plain = 1 / rope["rope_theta"] ** (torch.arange(0, SIZE, 2) / SIZE)
        writer.add_tensor("rope_freqs.weight", (plain / model.model.rotary_emb.inv_freq).numpy().astype(np.float32))
    elif scaling:
        writer.add_rope_scaling_type(gguf.RopeScalingType[rope["rope_type"].upper()])
        writer.add_rope_scaling_factor(rope["factor"])
        if "original_max_position_embeddings" in rope:
            writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for name, one in model.state_dict().items():
        value = one.float().numpy()
        if arch == gguf.MODEL_ARCH.LLAMA and ("q_proj" in name or "k_proj" in name):
            value = value.reshape(HEADS, 2, SIZE // 2, -1).swapaxes(1, 2).reshape(value.shape)
        stem, _, kind = name.rpartition(".")
        writer.add_tensor(f"{names.get_name(stem)}.{kind}", np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


torch.manual_seed(0)
ids = torch.randint(64, (1, LONG))
for name, kind, config, arch, rope in (
    ("Llama 3.1", LlamaForCausalLM, LlamaConfig, gguf.MODEL_ARCH.LLAMA, LLAMA3),
    ("Qwen 2, yarn", Qwen2ForCausalLM, Qwen2Config, gguf.MODEL_ARCH.QWEN2, YARN),
    ("Llama, linear", LlamaForCausalLM, LlamaConfig, gguf.MODEL_ARCH.LLAMA, LINEAR),
):
    for scaled in (False, True):
        asked = rope if scaled else dict(rope_type="default", rope_theta=rope["rope_theta"])
        source = kind(config(**SIZES, rope_parameters=asked)).eval()
        write(source, arch, rope, scaled)
        loaded = AutoModelForCausalLM.from_pretrained(".", gguf_file="model.gguf", dtype=torch.float32).eval()
        with torch.no_grad():
            away = (source(ids).logits.log_softmax(-1) - loaded(ids).logits.log_softmax(-1)).abs()[0].mean(-1)
        ratio = source.model.rotary_emb.inv_freq / loaded.model.rotary_emb.inv_freq
        kept = loaded.config.rope_parameters["rope_type"]
        print(
            f"{name} {'scaled' if scaled else 'plain'}: {kept}, frequencies {ratio.min():.3f} to {ratio.max():.3f},",
            f"nats {away[:16].mean():.3f} {away[-16:].mean():.3f}",
        )
EOF
export HOME="$folder"
env/bin/python ask.py 2>ask.log | tee seen || { tail ask.log; exit 1; }
diff seen - <<'EOF' || { echo "changed"; tail ask.log; exit 1; }
Llama 3.1 plain: default, frequencies 1.000 to 1.000, nats 0.000 0.000
Llama 3.1 scaled: default, frequencies 0.125 to 1.000, nats 0.004 0.423
Qwen 2, yarn plain: default, frequencies 1.000 to 1.000, nats 0.000 0.000
Qwen 2, yarn scaled: default, frequencies 0.250 to 1.000, nats 0.144 0.482
Llama, linear plain: default, frequencies 1.000 to 1.000, nats 0.000 0.000
Llama, linear scaled: default, frequencies 0.125 to 0.125, nats 0.986 1.552
EOF
! grep -i rope ask.log || { echo "changed: it warns"; exit 1; }
echo "as stated: transformers 5.19.0, gguf 0.19.0"
