#!/usr/bin/env bash
# DeepSpeed 0.19.8, ZeRO 1 and 2: with bfloat16 master weights the weights are held twice.
#
# bf16.bf16_master_weights_and_grads with bf16_optimizer_states is for training without float32 masters. The masters then
# have the type and the values of the weights, and at one rank all of them, but memory of their own: the optimizer updates
# the copy, and each step copies it back over the weights. So 2 of the 4 bytes a parameter that the setting seems to save
# stay, and the copy is the one that torch's optimizer sees.
#
# Seen, on Python 3.11 without a GPU, one rank, a layer of 64 x 64:
#   ZeRO 1, 2: masters are bfloat16, equal to the weights, 8192 bytes, in another storage
# Fails when this changes: whoever makes the masters the weights themselves can then stop doing so.
set -euo pipefail
lock=$(cd "$(dirname "$0")/.." && pwd)/requirements/cpu.txt
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

pinned() { grep -oE "^$1==[^ ;\\]*" "$lock"; }
python3 -m venv env
env/bin/pip install -qq --no-compile -U setuptools wheel numpy
env/bin/pip install -qq --no-deps --no-compile "$(pinned torch)"
env/bin/pip install -qq --no-compile filelock typing-extensions sympy networkx jinja2 fsspec
DS_BUILD_OPS=0 env/bin/pip install -qq --no-compile --no-build-isolation "$(pinned deepspeed)"
cat >ask.py <<'PY'
import os

os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
os.environ |= {"MASTER_PORT": os.environ["PORT"], "DS_ACCELERATOR": "cpu"}
import deepspeed
import torch

deepspeed.init_distributed(dist_backend="gloo")
for stage in (1, 2):
    layer = torch.nn.Linear(64, 64, bias=False).bfloat16()
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": True, "bf16_master_weights_and_grads": True, "bf16_optimizer_states": True},
        "data_types": {"grad_accum_dtype": "bf16"},
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3)
    engine, _, _, _ = deepspeed.initialize(model=layer, optimizer=optimizer, config=config, dist_init_required=False)
    (master,), (weights,) = engine.optimizer.single_partition_of_fp32_groups, engine.optimizer.bit16_groups_flat
    copied = master.untyped_storage().data_ptr() != weights.untyped_storage().data_ptr()
    size = master.numel() * master.element_size()
    print(f"ZeRO {stage}: masters {master.dtype}, equal {master.equal(weights)}, {size} bytes, another storage {copied}")
    assert (master.dtype, size, copied) == (torch.bfloat16, 8192, True) and master.equal(weights), "changed"
torch.distributed.destroy_process_group()
PY
PORT=$(env/bin/python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])') \
    env/bin/python -W ignore ask.py 2>/dev/null | grep "^ZeRO"
echo "as stated: DeepSpeed 0.19.8"
