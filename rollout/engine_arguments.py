"""What a pool's settings are in vLLM's own words."""

from typing import Any

from rollout import vllm_quirks as quirks
from rollout.config import ALONE, AdapterConfig, EngineConfig
from rollout.vllm_quirks.scheduling import CHECKS


def engine_arguments(model: str, config: EngineConfig, device: str) -> dict[str, Any]:
    """The keyword arguments of vLLM's EngineArgs, and of its LLM, that a pool's settings decide."""
    on_gpu: dict[str, Any] = {"gpu_memory_utilization": config.gpu_memory_utilization or ALONE}
    if config.kv_cache_gib:  # and what others on the card do meanwhile is not measured
        on_gpu["kv_cache_memory_bytes"] = int(config.kv_cache_gib * quirks.GIB) // config.tensor_parallel_size
    return {
        "model": model,
        **quirks.HUGGING_FACE,
        "dtype": config.dtype_on(device),
        "max_model_len": config.window,
        "tensor_parallel_size": config.tensor_parallel_size,
        "max_num_seqs": config.max_num_seqs,
        # A prompt fits one batch, and vLLM refuses one with fewer tokens than there are places.
        "max_num_batched_tokens": max(config.max_num_batched_tokens, config.window, config.max_num_seqs + CHECKS),
        **quirks.executor_arguments(config),
        "enforce_eager": config.is_eager(device),
        "generation_config": "auto",
        **(quirks.cpu_arguments(config) if device == "cpu" else on_gpu),
    }


def optional_arguments(
    weight_backend: str | None,
    worker_extension: str | None,
    adapter: AdapterConfig | None,
    mends_adapter: bool,
    sleeps: bool,
) -> dict[str, Any]:
    """Keyword arguments of vLLM's EngineArgs for what `Engine` may do beside sampling and scoring."""
    from vllm.config import WeightTransferConfig

    assert not (adapter and worker_extension), "an adapter's weights come as files"
    extension = "rollout.vllm_quirks.AdapterWorker" if mends_adapter else worker_extension
    return {
        **({"enable_sleep_mode": True} if sleeps else {}),
        **({"weight_transfer_config": WeightTransferConfig(backend=weight_backend)} if weight_backend else {}),
        **({"worker_extension_cls": extension} if extension else {}),
        **(quirks.adapter_arguments(adapter) if adapter else {}),
    }
