#!/usr/bin/env bash
# torch 2.13.0 on a CPU: bfloat16 products keep memory for every length that their rows have had, twice.
#
# oneDNN keeps what it made for the last shapes, and so does torch's layer over it (ideep): 1,024 each by default. Training
# on packed or unpadded rows has new lengths in every step, forward and backward, so that a process grows for hundreds of
# steps and looks as if it leaked: no tensor lives and nothing in Python holds it, and with one length it stays level. Two
# environment variables bound it, read when torch is loaded: ONEDNN_PRIMITIVE_CACHE_CAPACITY and LRU_CACHE_CAPACITY. One
# of them alone leaves half. A few shapes are enough, and a step takes as long.
#
# Seen, on Python 3.11 and a processor with AVX512-BF16: two layers, 300 steps forward and backward with one row more each
# time; MB that malloc has given out since step 20:
#   neither bounded           542
#   oneDNN's at 64            254
#   ideep's at 64             288
#   both                        1
#   neither, one length         0
# In float32 nothing of it: 0. A processor without products in bfloat16 was not asked.
# Fails when this changes.
set -euo pipefail
lock=$(cd "$(dirname "$0")/.." && pwd)/requirements/cpu.txt
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
grep -q avx512_bf16 /proc/cpuinfo || { echo "not asked: this processor has no AVX512-BF16"; exit 0; }

python3 -m venv env
env/bin/pip install -qq --no-deps --no-compile "$(grep -oE '^torch==[^ ;\\]*' "$lock")"
env/bin/pip install -qq --no-compile -U -c "$lock" setuptools numpy filelock typing-extensions sympy \
    networkx jinja2 fsspec
env/bin/pip list 2>/dev/null | grep -E '^torch '

cat >ask.py <<'EOF'
import ctypes
import sys

import torch

NAMES = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()


class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in NAMES]


libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info
torch.set_num_threads(1)
dtype, grows = getattr(torch, sys.argv[1]), sys.argv[2] == "new"
layers = torch.nn.Sequential(*(torch.nn.Linear(*size, bias=False, dtype=dtype) for size in ((576, 1536), (1536, 576))))
for step in range(300):
    layers(torch.ones(64 + step * grows, 576, dtype=dtype)).sum().backward()
    layers.zero_grad()
    if step == 19:
        first = libc.mallinfo2().uordblks
print(round((libc.mallinfo2().uordblks - first) / 1e6))
EOF
ask() { env "${@:3}" env/bin/python ask.py "$1" "$2" 2>/dev/null; }
one=ONEDNN_PRIMITIVE_CACHE_CAPACITY=64 other=LRU_CACHE_CAPACITY=64
neither=$(ask bfloat16 new) first=$(ask bfloat16 new $one) second=$(ask bfloat16 new $other)
both=$(ask bfloat16 new $one $other) level=$(ask bfloat16 same) plain=$(ask float32 new)
echo "neither $neither, oneDNN's $first, ideep's $second, both $both, one length $level, float32 $plain"
((neither > 400 && first > 180 && second > 180 && both < 10 && level < 10 && plain < 10))
echo "as stated"
