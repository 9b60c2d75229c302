"""A learner on a CPU does not grow with the lengths that it has seen (findings/torch-cpu-keeps-every-length.sh), and
keeps no holes between two micro-batches."""

import os
import subprocess
import sys

import pytest
import torch

from cluster.fleet.launch import learner_environment
from cluster.fleet.placement import Plan
from learner.config import LearnerConfig
from learner.deepspeed_quirks import zero_settings
from rollout.cores import cpu_flags

GROWN = """
import ctypes
import torch

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "abcdefghij"]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info
layers = torch.nn.Sequential(*(torch.nn.Linear(*size, dtype=torch.bfloat16) for size in ((576, 1536), (1536, 576))))
for step in range(160):
    layers(torch.ones(64 + step, 576, dtype=torch.bfloat16)).sum().backward()
    layers.zero_grad()
    if step == 79:
        first = libc.mallinfo2().h
print(round((libc.mallinfo2().h - first) / 1e6))
"""


def grown(environment: dict[str, str]) -> int:
    """MB that malloc has given out over 80 steps, each of another length."""
    done = subprocess.run([sys.executable, "-c", GROWN], env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_a_learner_s_caches_are_bounded_on_a_cpu_alone() -> None:
    bounds = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "64"}
    assert bounds.items() <= learner_environment(Plan("cpu", "shm", {}, 1, threads=1)).items()
    on_gpu = learner_environment(Plan("cuda", "ipc", {}, 1, threads=16))
    assert not bounds.keys() & on_gpu.keys() and on_gpu["OMP_NUM_THREADS"] == "16"


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_a_learner_whose_memory_an_engine_opens_has_no_segments_that_expand(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever else the user asks of torch's allocator stays; where weights go over NCCL, all of it."""
    monkeypatch.setenv(name, "max_split_size_mb:512, expandable_segments:True,roundup_power2_divisions:[256:1,512:2]")
    told = learner_environment(Plan("cuda", "ipc", {}, 1, threads=16))
    assert told[name] == "max_split_size_mb:512,roundup_power2_divisions:[256:1,512:2],expandable_segments:False"
    assert name not in learner_environment(Plan("cuda", "nccl", {}, None, threads=16))
    monkeypatch.setenv(name, "max_split_size_mb:512")
    assert name not in learner_environment(Plan("cuda", "ipc", {}, 1, threads=16))


@pytest.mark.skipif("avx512_bf16" not in cpu_flags(), reason="needs a processor with products in bfloat16")
def test_a_learner_keeps_what_it_made_for_a_few_lengths_only() -> None:
    others = {key: value for key, value in os.environ.items() if "CACHE_CAPACITY" not in key}
    own = learner_environment(Plan("cpu", "shm", {}, 1, threads=1))
    assert grown(others | own) < 10, "torch keeps memory for each length again: see findings/"
    assert grown(others) > 80, "torch no longer keeps memory for each length: KEPT_SHAPES can go"


HOLES = """
import torch
from pathlib import Path
from learner.memory import give_back

def held():
    return 4096 * int(Path("/proc/self/statm").read_text().split()[1])

blocks = [torch.ones(1 << 18) for _ in range(200)]
full = held()
del blocks[::2]
freed = full - held()
give_back()
print(round(freed / 1e6), round((full - held()) / 1e6))
"""


def test_memory_that_is_freed_amid_the_heap_goes_back_to_the_system() -> None:
    """Every other of 200 blocks of 1 MiB is freed, in a learner's environment."""
    own = learner_environment(Plan("cpu", "shm", {}, 1, threads=1))
    done = subprocess.run(
        [sys.executable, "-c", HOLES], env=os.environ | own, capture_output=True, text=True, check=True
    )
    before, after = map(int, done.stdout.split())
    assert before < 10, "malloc gives it back by itself: give_back can go"
    assert after > 90


@pytest.mark.parametrize(
    ("stage", "on_gpu", "own"), [(1, False, True), (2, False, True), (3, False, False), (1, True, False)]
)
def test_zero_1_and_2_copy_a_part_of_the_gradients_at_a_time_on_a_cpu(
    stage: int, on_gpu: bool, own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSpeed's own buckets hold 5e8: with 135 million parameters it copied, and widened, all of them at once."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: on_gpu)
    settings = zero_settings(LearnerConfig(zero_stage=stage))["zero_optimization"]
    assert ("reduce_bucket_size" in settings) is own
    assert settings.get("reduce_bucket_size", 0) * 4 < 64e6  # bytes of one in float32
