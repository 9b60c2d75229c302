"""What vLLM is told on a CPU and on a GPU."""

import importlib.util
import os
from typing import Any

import pytest

from cluster.config import TeacherConfig
from rollout.config import ALONE, EngineConfig
from rollout.engine_arguments import engine_arguments
from rollout.vllm_quirks.environment import enter_gpu_environment
from rollout.vllm_quirks.scheduling import scheduling_arguments


def told(config: EngineConfig, device: str) -> dict[str, Any]:
    return engine_arguments("model", config, device)


@pytest.mark.parametrize(("gib", "expected"), [(0.5, 536_870_912), (2.5, 2_684_354_560), (1.0, 1_073_741_824)])
@pytest.mark.parametrize(("flag", "dtype"), [("amx_bf16", "bfloat16"), ("avx2", "float32")])
def test_a_cpus_engine_is_eager_and_has_its_cache_in_bytes(
    gib: float, expected: int, flag: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rollout.config.cpu_flags", lambda: frozenset({flag}))
    found = told(EngineConfig(kv_cache_gib=gib), "cpu")
    assert found["enforce_eager"] is True and found["dtype"] == dtype
    assert found["kv_cache_memory_bytes"] == expected and "gpu_memory_utilization" not in found


def test_a_gpus_engine_has_cuda_graphs_and_the_card_that_nobody_planned() -> None:
    found = told(EngineConfig(), "cuda")
    assert found["enforce_eager"] is False and found["gpu_memory_utilization"] == ALONE
    assert "kv_cache_memory_bytes" not in found and "block_size" not in found


@pytest.mark.parametrize("is_installed", [True, False])
@pytest.mark.parametrize(("own", "expected"), [({}, "0"), ({"VLLM_USE_FLASHINFER_SAMPLER": "1"}, "1")])
def test_a_gpus_engine_warms_no_sampler_up_that_takes_no_seeds(
    is_installed: bool, own: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FlashInfer's, which is compiled for it, with nvcc; unless the user asks for it."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if is_installed else None)
    monkeypatch.setattr(os, "environ", dict(own))
    enter_gpu_environment()
    assert os.environ["VLLM_USE_FLASHINFER_SAMPLER"] == expected


@pytest.mark.parametrize(("workers", "expected"), [(1, 1_610_612_736), (2, 805_306_368)])
def test_a_gpus_cache_is_the_recipes_where_it_says(workers: int, expected: int) -> None:
    """vLLM counts that of each worker."""
    found = told(EngineConfig(kv_cache_gib=1.5, tensor_parallel_size=workers), "cuda")
    assert found["kv_cache_memory_bytes"] == expected
    assert told(EngineConfig(), "cpu")["kv_cache_memory_bytes"] == 1_073_741_824


@pytest.mark.parametrize("share", [0.05, 1.0])
def test_a_share_that_is_planned_is_taken(share: float) -> None:
    assert told(EngineConfig(gpu_memory_utilization=share), "cuda")["gpu_memory_utilization"] == share


@pytest.mark.parametrize(("device", "dtype"), [("cpu", "float32"), ("cuda", "bfloat16")])
def test_a_teachers_dtype_is_the_devices(device: str, dtype: str) -> None:
    assert told(TeacherConfig(), device)["dtype"] == dtype
    assert told(TeacherConfig(dtype="float16"), device)["dtype"] == "float16"


def test_what_a_recipe_says_is_what_vllm_is_told() -> None:
    assert told(EngineConfig(enforce_eager=False), "cpu")["enforce_eager"] is False
    assert told(EngineConfig(enforce_eager=True), "cuda")["enforce_eager"] is True


def test_a_batch_has_a_token_for_each_place_and_for_that_of_a_check() -> None:
    """vLLM refuses fewer tokens in a batch than sequences."""
    config = EngineConfig(max_num_seqs=2048, max_num_batched_tokens=2048, window=512)
    found = engine_arguments("model", config, "cpu") | scheduling_arguments(config)
    assert found["max_num_seqs"] == found["max_num_batched_tokens"] == 2049
