"""What `rollout.vllm_quirks` knows of vLLM's private sides, asked of the vLLM that is installed.

A test that fails here says that vLLM has changed: look its entry up there, and drop or change what it is for. One tiny
engine, in a process of its own that is killed in the end, answers for all that need a running one; the rest ask vLLM's
functions and layers.
"""

import asyncio
import contextlib
import inspect
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from cluster.commands.probe_server import _settings
from cluster.fleet.processes import end_processes, own_processes
from cluster.fleet.scratch import enter, remove_left
from cluster.weights.receiver import stale_heads
from evidence.records import RolloutRequest
from learner.folder import engines_files
from rollout import vllm_quirks as quirks
from rollout.config import TEMPERATURES, AdapterConfig, EngineConfig, SamplingConfig
from rollout.cores import cpu_flags, has_bfloat16
from rollout.probe import ProbeConfig
from rollout.vllm_quirks import environment, forking, sampling, scheduling
from tests import fakes
from tests.process.test_checks import POSITIONS
from tests.process.test_folder import beside, beside_torchs, in_shards, torchs_beside_a_trainers, two_of_torchs
from tests.reference import logprobs_of, plain_model
from tests.runs import ROOT
from tests.unit.test_top_k_first import sort_all

pytestmark = pytest.mark.engine

WINDOW = 512  # the model's positions, all of them
CONFIG = EngineConfig(dtype="float32", window=WINDOW, kv_cache_gib=0.5, cpu_threads=1, max_num_seqs=4)
PROMPT = np.arange(100, 164, dtype=np.int32)  # two blocks of the cache
RESPONSE = np.arange(900, 950, dtype=np.int32)
FULL = np.random.default_rng(0).integers(5, 40_000, WINDOW).astype(np.int32)


def changed(message: str) -> str:
    return f"vLLM has changed: {message}; see rollout/vllm_quirks"


@pytest.fixture(scope="module")
def model(default_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("contract-model")
    sizes = {"vocab": 49152, "hidden_size": 128, "head_dim": 32, "max_position_embeddings": WINDOW}
    return fakes.tiny_model(folder, tokenizer_from=default_model, **sizes)


@pytest.fixture(scope="module")
def found(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("contract")
    target, log = folder / "found.json", folder / "log"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with log.open("w") as said:  # no pipe, whose end would not come from a core that is left
        command = [sys.executable, __file__, str(model), str(target)]
        ended = subprocess.run(command, stderr=said, timeout=400, cwd=ROOT, env=env)
    assert ended.returncode == -signal.SIGKILL, log.read_text()[-3000:]
    remove_left()
    answers = json.loads(target.read_text())
    yield answers
    end_processes(answers["processes"])


class Worker:
    """Mixed into the engine's worker."""

    def process(self) -> list[int]:
        """[its parent, its children, its OpenMP threads]."""
        own = psutil.Process()
        return [own.ppid(), len(own.children()), torch.get_num_threads()]

    def compiled(self) -> dict[str, int]:
        """What was given to torch's compiler."""
        from torch._dynamo.utils import counters

        return dict(counters["frames"])


async def _refusal(work: Any) -> str:
    try:
        await work
    except RuntimeError as error:
        return str(error)
    return ""


async def _drive(model: str, target: Path) -> None:
    """Writes what it found to `target`, and is killed."""
    from vllm import SamplingParams

    from rollout.engine import Engine

    enter(secrets.token_hex(4))  # whoever is killed leaves files
    engine = Engine(model, CONFIG, "cpu", worker_extension="tests.engine.test_vllm_contract.Worker")
    cache = engine._llm.vllm_config.cache_config
    row = np.concatenate([PROMPT, RESPONSE])
    request = RolloutRequest("r-7", "p", "g", False, "system", PROMPT, PROMPT)
    sampling = SamplingConfig(1.0, 6)

    async def cached(ids: Any, **parameters: Any) -> int:
        params = SamplingParams(max_tokens=1, detokenize=False, **parameters)
        return int((await engine._finished(ids, params, base=False)).num_cached_tokens or 0)

    found: dict[str, Any] = {
        "own": os.getpid(),
        "worker": (await engine._llm.collective_rpc("process"))[0],
        "spawns": os.environ["VLLM_WORKER_MULTIPROC_METHOD"],
        "preloads": os.environ["LD_PRELOAD"],
        "cache": [cache.block_size, cache.kv_cache_memory_bytes, cache.num_gpu_blocks],
        "version": await engine._llm.get_weight_version(),
        "too_long": await _refusal(cached(FULL)),
        "full": (await engine.score([FULL[:100]], [FULL[100:]]))[0].tolist(),
        "first": (await engine.score([PROMPT], [RESPONSE]))[0].tolist(),
    }
    found["looked_up"] = [
        await cached(row[:33]),
        await cached(row, prompt_logprobs=0, skip_reading_prefix_cache=False),
        int((await engine._read(row, len(PROMPT), base=False)).num_cached_tokens or 0),
    ]
    # The same token, forced upon the engine and read as the prompt's.
    forced = await engine._read(row[:70], 1, base=False)
    read = await engine._read(row[:71], 1, base=False)
    found["forced"] = [forced.outputs[0].logprobs.logprobs[0], read.prompt_logprobs.logprobs[-1]]
    pair = await engine._generate(PROMPT, sampling, 2, 7)
    single = await engine._generate(PROMPT, sampling, 1, 8)
    found["seeds"] = [list(output.token_ids) for output in (*pair.outputs, *single.outputs)]
    found["compiled"] = (await engine._llm.collective_rpc("compiled"))[0]

    found["loggers"] = [type(logger).__name__ for logger in engine._llm.logger_manager.stat_loggers]  # type: ignore[union-attr]
    found["tally"] = engine.tally.stats | {}
    name = next(engine._ids) + 1
    drawn = asyncio.create_task(_refusal(engine.sample([request], SamplingConfig(1.0, 400), 1)))
    while not engine._llm.output_processor.has_unfinished_requests():
        await asyncio.sleep(0)
    await engine._llm.abort(str(name))
    found["aborted"] = await drawn
    found["order"] = await _checked_beside(engine, request)
    found["processes"] = own_processes()
    target.write_text(json.dumps(found))
    os.kill(os.getpid(), signal.SIGKILL)  # before anything could tell the engine's core to end


async def _checked_beside(engine: Any, request: RolloutRequest) -> dict[str, Any]:
    """What was done when of: twice as many sequences as the engine runs, a row that is scored, and one as a check."""
    done: list[str] = []

    async def noted(name: str, work: Any) -> Any:
        answer = await work
        done.append(name)
        return answer

    group, sampling = [request] * CONFIG.max_num_seqs, SamplingConfig(1.0, 400)
    drawn = [asyncio.create_task(noted("sampled", engine.sample(group, sampling, seed))) for seed in range(2)]
    await asyncio.sleep(0.2)
    scored = asyncio.create_task(noted("scored", engine.score([PROMPT], [RESPONSE])))
    await asyncio.sleep(0)
    checked = await noted("checked", engine.check(PROMPT, RESPONSE))
    await asyncio.gather(scored, *drawn)
    return {"done": done, "checked": checked.tolist()}


def test_every_entry_names_a_test_of_this_file() -> None:
    text = "".join(map(inspect.getsource, (quirks, forking, sampling, scheduling)))
    named = set(re.findall(r"\btest_\w+", text)) - {"test_vllm_contract"}
    here = {name for name in globals() if name.startswith("test_")}
    assert named and named <= here
    assert text.count("Seen: ") == text.count("Without: ") == text.count("Contract: ") >= 10


def test_a_python_type_is_pickled_only_when_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.serial_utils import MsgpackEncoder

    with pytest.raises(TypeError, match="VLLM_ALLOW_INSECURE_SERIALIZATION"):
        MsgpackEncoder().encode(fakes.repeat_head)
    for name, value in quirks.IPC_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    assert MsgpackEncoder().encode(fakes.repeat_head)


def test_temperatures_outside_the_range_are_changed_or_refused() -> None:
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    low, high = TEMPERATURES
    assert SamplingParams(temperature=low / 2).temperature == low, changed("temperatures below the least are kept")
    assert [SamplingParams(temperature=t).temperature for t in (0.0, low, high)] == [0.0, low, high]
    with pytest.raises(VLLMValidationError, match="temperature"):
        SamplingParams(temperature=high + 0.01)
    with pytest.raises(VLLMValidationError, match="greedy"):
        SamplingParams(temperature=0.0, n=2)


def test_a_cpu_engine_has_one_process_and_the_threads_and_cache_asked_for(
    found: dict[str, Any],
) -> None:
    parent, children, threads = found["worker"]
    assert (parent, children) == (found["own"], 0), changed("the model has a process of its own beside the scheduler's")
    assert threads == CONFIG.cpu_threads
    block_bytes = 2 * 2 * 32 * 2 * 32 * 4  # keys and values, layers, tokens, heads, their size, float32
    assert found["cache"][1] == 1 << 29 and found["cache"][2] == (1 << 29) // block_bytes


def test_an_eager_engine_compiles_the_ranks_of_log_probs(found: dict[str, Any]) -> None:
    from vllm.v1.sample.ops.logprobs import batched_count_greater_than

    assert hasattr(batched_count_greater_than, "_torchdynamo_orig_callable"), changed("they are counted as they stand")
    assert found["compiled"] == {}


def test_a_cpus_core_is_spawned_unless_it_is_forked_here(
    found: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.v1.engine import utils

    assert found["spawns"] == "spawn", changed("a CPU's core may be forked")
    source = inspect.getsource(utils.CoreEngineProcManager.__init__)
    assert "context = get_mp_context()" in source and "context.Process(" in source, changed("it starts cores otherwise")
    monkeypatch.setattr(utils, "get_mp_context", None)
    forking.fork_cores()
    assert utils.get_mp_context().get_start_method() == "fork"


def test_a_core_preloads_two_libraries(found: dict[str, Any]) -> None:
    others = os.environ.get("LD_PRELOAD", "")
    assert set(found["preloads"].split(":")) == set(forking.preloaded({"LD_PRELOAD": others}).split(":"))


def test_a_core_ends_when_the_process_that_has_the_engine_is_killed(found: dict[str, Any]) -> None:
    """vLLM's own waits for requests for ever: a core of a killed actor would keep its gigabytes."""
    (core, begun), (own, _) = found["processes"]
    assert own == found["own"] and core != own
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(core)
        if process.create_time() == begun:
            assert not psutil.wait_procs([process], timeout=20)[1]


def test_a_cpus_generator_cannot_be_wound_back() -> None:
    from vllm.v1.worker import gpu_model_runner

    assert "set_offset(gen.get_offset() - 4)" in inspect.getsource(gpu_model_runner), changed("nothing is wound back")
    with pytest.raises(RuntimeError):
        torch.Generator("cpu").get_offset()


def test_a_prompt_is_cached_in_blocks_of_32(found: dict[str, Any]) -> None:
    assert found["cache"][0] == 32 and found["looked_up"][0] == 32


def test_a_placement_group_would_choose_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.config import ParallelConfig

    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.util.get_current_placement_group", lambda: "a group")
    assert ParallelConfig(tensor_parallel_size=2).distributed_executor_backend == "ray", changed("it takes processes")
    chosen = quirks.executor_arguments(EngineConfig(tensor_parallel_size=2))
    assert ParallelConfig(tensor_parallel_size=2, **chosen).distributed_executor_backend == "mp"


def test_flashinfer_is_taken_for_granted(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm import SamplingParams
    from vllm.v1.sample.ops import topk_topp_sampler as sampler

    monkeypatch.setattr(sampler, "current_platform", SimpleNamespace(is_cuda=lambda: True))
    monkeypatch.setattr(os, "environ", dict(os.environ))
    os.environ.pop("VLLM_USE_FLASHINFER_SAMPLER", None)
    with pytest.raises(ImportError, match="flashinfer"):
        sampler.flashinfer_sampler_supported()
    environment.enter_gpu_environment()
    assert sampler.flashinfer_sampler_supported() is False
    warmed_up = SamplingParams.for_sampler_warmup()
    assert warmed_up.top_k > 0 and warmed_up.seed is None, changed("it warms up without FlashInfer")


def test_a_core_is_forked_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.utils.system_utils import get_mp_context

    monkeypatch.setattr(os, "environ", dict(os.environ))
    os.environ.pop("VLLM_WORKER_MULTIPROC_METHOD", None)
    assert get_mp_context().get_start_method() == "fork", changed("it never forks")
    environment.enter_gpu_environment()
    assert get_mp_context().get_start_method() == "spawn"


def test_room_is_for_some_ranks_only() -> None:
    from vllm.config import LoRAConfig

    with pytest.raises(ValueError, match="max_lora_rank"):
        LoRAConfig(max_lora_rank=6)  # type: ignore[arg-type]
    asked = {rank: quirks.adapter_arguments(AdapterConfig(rank, ("q_proj",)))["max_lora_rank"] for rank in (1, 6, 8, 9)}
    assert asked == {1: 1, 6: 8, 8: 8, 9: 16}
    assert all(LoRAConfig(max_lora_rank=room) for room in asked.values())


def test_weights_that_were_never_updated_are_of_the_default_version(found: dict[str, Any]) -> None:
    assert found["version"] == "default", changed("fresh weights have another version")
    assert [quirks.version_number(version) for version in ("default", "7")] == [0, 7]


def test_statistics_have_one_logger(found: dict[str, Any]) -> None:
    assert found["loggers"] == ["TallyLogger"], changed("it adds a logger of its own")
    assert found["tally"]["generated_tokens"] >= 18 + 6 and found["tally"]["prompt_tokens"] > len(FULL)
    assert found["tally"]["cached_tokens"] >= 32 and found["tally"]["preemptions"] == 0


def test_a_prompt_may_not_fill_the_window(found: dict[str, Any], model: Path) -> None:
    refused = f"engine: found a request of {WINDOW} tokens, which vLLM refuses: "
    assert found["too_long"].startswith(refused), changed("a prompt may be as long as the window")
    expected = logprobs_of(plain_model(model), FULL[:100], FULL[100:]).detach().numpy()
    assert np.abs(np.array(found["full"]) - expected).max() < 1e-3  # the last position is used


def test_a_window_beyond_the_models_positions_is_refused_by_the_number_that_was_asked_for(model: Path) -> None:
    from vllm.engine.arg_utils import EngineArgs

    from rollout.engine_arguments import engine_arguments

    with pytest.raises(ValueError, match=rf"\({WINDOW + 1}\) is greater than .*{WINDOW}"):
        EngineArgs(**engine_arguments(str(model), EngineConfig(window=WINDOW + 1), "cpu")).create_engine_config()


def test_a_forced_tokens_log_prob_is_the_models_own(found: dict[str, Any], model: Path) -> None:
    expected = logprobs_of(plain_model(model), PROMPT, RESPONSE).detach().numpy()
    assert expected[5] < -0.1 and np.abs(np.array(found["forced"]) - expected[5]).max() < 1e-3, changed(
        "a sampled token's log-prob depends on the tokens that are allowed"
    )
    assert np.abs(np.array(found["first"]) - expected).max() < 1e-3


def test_log_probs_of_cached_places_are_lost() -> None:
    from vllm import SamplingParams

    asked = SamplingParams(prompt_logprobs=0)
    assert asked.skip_reading_prefix_cache, changed("it reads the cache for whoever asks for a prompt's log-probs")


def test_a_scored_row_is_looked_up_as_its_prompt(found: dict[str, Any]) -> None:
    _, whole, scored = found["looked_up"]
    assert whole == 96, changed("a row of 114 tokens that was read before is found otherwise")
    assert scored == 32  # of two blocks of the prompt the last token is read, and so its block


def test_a_check_goes_first_and_has_a_place_of_its_own(found: dict[str, Any], model: Path) -> None:
    order = found["order"]
    assert order["done"][:2] == ["checked", "sampled"], changed("a row that is asked for last is not scored last")
    expected = logprobs_of(plain_model(model), PROMPT, RESPONSE).detach().numpy()
    assert np.abs(np.array(order["checked"]) - expected).max() < 1e-3


def test_a_cpu_sorts_the_whole_vocabulary_for_top_p(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.sample.ops import topk_topp_sampler as place

    usual = place.apply_top_k_top_p_pytorch
    taken = [*inspect.signature(usual).parameters.items()]
    assert [name for name, _ in taken] == ["logits", "k", "p", "allow_cpu_sync"], changed(
        "its top-p takes other things"
    )
    logits = 4 * torch.randn(8, 49_152, generator=torch.Generator().manual_seed(0))
    k, p = torch.tensor([1, 20, 20, 40, 300, 49_152, 20, 20], dtype=torch.int32), torch.tensor([0.5, 0.95] * 4)
    expected = place.apply_top_k_top_p(logits.clone(), k, p)
    shapes: list[tuple[int, ...]] = []

    def noted(logits: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        shapes.append(tuple(logits.shape))
        return usual(logits, *arguments, **options)

    monkeypatch.setattr(place, "apply_top_k_top_p_pytorch", noted)
    place.apply_top_k_top_p(logits.clone(), k, p)
    assert shapes == [(8, 49_152)], changed("a CPU no longer sorts all rows for top-p")
    sampling.look_for_top_k_first()
    sampling.look_for_top_k_first()  # a second engine in the process
    assert torch.equal(place.apply_top_k_top_p(logits.clone(), k, p), expected)
    assert torch.equal(sort_all(logits, k, p), expected), changed("a sort of all leaves other logits")
    assert shapes[1:] == [(8, 384), (1, 49_152)], changed("top-p is taken elsewhere")


def test_the_samples_of_a_request_have_seeds_that_follow_each_other(found: dict[str, Any]) -> None:
    first, second, other = found["seeds"]
    assert first != second == other, changed("the second sample of seed 7 is not the first of seed 8")


def test_a_request_that_was_aborted_is_one_line(found: dict[str, Any]) -> None:
    assert found["aborted"] == (
        "sampling: rollout r-7: found finish reason 'abort', expected 'stop' or 'length': the engine gave it up"
    )


@pytest.fixture
def layers(tmp_path: Path) -> Iterator[torch.nn.Module]:
    """vLLM's own layers, loaded and packed: an embedding, a nested head that shares its weight, and another head."""
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import (
        destroy_distributed_environment,
        destroy_model_parallel,
        init_distributed_environment,
        initialize_model_parallel,
    )
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
    from vllm.model_executor.model_loader.reload import record_metadata_for_reloading

    with set_current_vllm_config(VllmConfig()):
        init_distributed_environment(1, 0, f"file://{tmp_path / 'meeting'}", 0, "gloo")
        initialize_model_parallel(1, 1)
        inner = {"embed_tokens": VocabParallelEmbedding(512, 64), "lm_head": ParallelLMHead(512, 64)}
        model = torch.nn.ModuleDict(
            {"language_model": torch.nn.ModuleDict(inner), "other_head": ParallelLMHead(512, 64)}
        )
        record_metadata_for_reloading(model)
        for layer in (*inner.values(), model["other_head"]):
            layer.weight.data.normal_()
        inner["lm_head"].tie_weights(inner["embed_tokens"])
        for layer in (*inner.values(), model["other_head"]):
            layer.quant_method.process_weights_after_loading(layer)
        yield model
        destroy_model_parallel()
        destroy_distributed_environment()


def test_a_reload_leaves_a_shared_heads_packed_copy_stale(layers: torch.nn.Module) -> None:
    """What is left when a transport has brought other weights, which name the embedding only."""
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    assert [name for name, layer in layers.named_modules() if layer in quirks.shared_heads(layers)] == [
        "language_model.lm_head"
    ]
    head, new, hidden = layers["language_model"]["lm_head"], torch.randn(512, 64), torch.randn(2, 64)  # type: ignore[index]

    def error() -> float:
        return float((head.quant_method.apply(head, hidden) - hidden @ new.T).abs().max())

    initialize_layerwise_reload(layers)
    weight = layers["language_model"]["embed_tokens"].weight  # type: ignore[index]
    weight.weight_loader(weight, new)
    finalize_layerwise_reload(layers, None)
    assert torch.equal(head.weight, new)
    assert error() > 1, changed("a shared head is packed anew by a reload")
    assert stale_heads(layers) == ["language_model.lm_head"]
    quirks.mend_shared_heads(layers)
    assert error() < 1e-3 and not stale_heads(layers)


OF_A_CPU_WITH_KERNELS = pytest.mark.skipif(
    not has_bfloat16(cpu_flags()), reason="where a CPU has no kernels for bfloat16, vLLM packs no head of it"
)


@pytest.mark.parametrize("dtype", [pytest.param(torch.bfloat16, marks=OF_A_CPU_WITH_KERNELS), torch.float32])
def test_a_head_is_stale_by_the_smallest_change(layers: torch.nn.Module, dtype: torch.dtype) -> None:
    """As a step's weights differ from the last step's: a few numbers, by one step of bfloat16 each."""
    embedding, head = (layers["language_model"][name] for name in ("embed_tokens", "lm_head"))  # type: ignore[index]
    layers.to(dtype)
    head.weight = embedding.weight
    for layer in (embedding, head, layers["other_head"]):  # type: ignore[index]
        layer.quant_method.process_weights_after_loading(layer)
    assert not stale_heads(layers)
    moved = embedding.weight.data[7, 0]
    moved.copy_(moved * (1 + 2.0**-7))  # the first of the columns that are looked at, in one row of 512
    assert "language_model.lm_head" in stale_heads(layers)
    quirks.mend_shared_heads(layers)
    assert "language_model.lm_head" not in stale_heads(layers)


@pytest.fixture
def of_two_formats(model: Path, tmp_path: Path) -> Path:
    """Hugging Face's shards, beside what makes vLLM take a folder for Mistral's own."""
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    beside("consolidated.safetensors")(folder)
    in_shards(folder)
    (folder / "params.json").write_text(json.dumps({"dim": 64, "n_layers": 1}))
    (folder / "tekken.json").write_text("{}")
    return folder


def files_of(folder: Path, **formats: str) -> list[Path]:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader import get_model_loader

    loader: Any = get_model_loader(EngineArgs(model=str(folder), **formats).create_load_config())
    return sorted(map(Path, loader._prepare_weights(str(folder), None, None, True, None)[1]))


def test_the_files_that_an_engine_reads_are_the_learners(of_two_formats: Path) -> None:
    from vllm.tokenizers.registry import resolve_tokenizer_args
    from vllm.transformers_utils.config import get_config

    formats, folder = quirks.HUGGING_FACE, of_two_formats
    modes = [
        resolve_tokenizer_args(str(folder), tokenizer_mode=mode)[0] for mode in ("auto", formats["tokenizer_mode"])
    ]
    assert modes == ["mistral", "hf"], changed("tekken.json beside consolidated weights is the tokenizer")
    mistrals = [folder / "consolidated.safetensors"]
    assert files_of(folder, load_format="auto") == mistrals, changed("consolidated weights are preferred")
    shards = [folder / f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    assert files_of(folder, load_format=formats["load_format"]) == shards
    config = get_config(str(folder), trust_remote_code=False, config_format=formats["config_format"])
    assert config.hidden_size == 128, changed("config.json is read")


@pytest.mark.parametrize(
    "kind", [in_shards, torchs_beside_a_trainers, beside_torchs, beside("a.safetensors"), two_of_torchs]
)
def test_the_files_that_an_engine_reads_are_known(model: Path, tmp_path: Path, kind: Any) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    kind(folder)
    assert engines_files(folder, "model.path") == files_of(folder, load_format=quirks.HUGGING_FACE["load_format"])


def test_a_fused_layer_is_loaded_with_its_first_part(layers: torch.nn.Module) -> None:
    from vllm.model_executor.layers.linear import MergedColumnParallelLinear, QKVParallelLinear
    from vllm.model_executor.model_loader.reload import initialize_layerwise_reload, record_metadata_for_reloading

    fused = torch.nn.ModuleDict(
        {
            "qkv_proj": QKVParallelLinear(64, 16, 4, 2, bias=False),
            "gate_up_proj": MergedColumnParallelLinear(64, [32, 32]),
        }
    )
    record_metadata_for_reloading(fused)
    for layer in fused.values():
        layer.quant_method.process_weights_after_loading(layer)
    initialize_layerwise_reload(fused)
    assert not quirks.partly_loaded(fused)  # nothing has come: the names of load_weights say so
    for rows, part in ((64, "q"), (32, "k"), (32, "v")):
        weight = fused["qkv_proj"].weight
        weight.weight_loader(weight, torch.randn(rows, 64), part)
        assert quirks.partly_loaded(fused) == ([] if part == "v" else ["qkv_proj"]), changed("q alone is not k and v")
    weight = fused["gate_up_proj"].weight
    weight.weight_loader(weight, torch.randn(32, 64), 0)
    assert quirks.partly_loaded(fused) == ["gate_up_proj"]


def test_a_reload_leaves_experts_unpacked() -> None:
    """What it does to outputs: tests/engine/test_experts.py."""
    from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod

    once = inspect.getsource(UnquantizedFusedMoEMethod._setup_kernel).partition("if not is_weight_update:")[2]
    assert "fused_experts.process_weights_after_loading(layer)" in once, changed("experts are packed by each reload")


OPERANDS = {"float32": 1e-4, "bfloat16": 0.2}


@pytest.mark.parametrize(("config", "most"), POSITIONS)
def test_a_windows_limit_is_vllms_own(config: Any, most: int | None) -> None:
    """What `rollout.positions` says of it, without vLLM."""
    from vllm.config.model import _get_and_verify_max_len
    from vllm.transformers_utils.model_arch_config_convertor import ModelArchConfigConvertorBase

    named = ModelArchConfigConvertorBase(config, config).derive_max_model_len_and_key()
    dimensions = SimpleNamespace(derived_max_model_len_and_key=named)

    def takes(window: int) -> int:
        return _get_and_verify_max_len(config, dimensions, None, window, False, None)

    assert takes(most or 1_000_000) == (most or 1_000_000)
    if most:
        with pytest.raises(ValueError, match="User-specified max_model_len"):
            takes(most + 1)


def test_longrope_agrees_with_transformers_up_to_the_original_length_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within it both take the short factors. Beyond, vLLM takes the long ones for every row of an engine with a larger
    window, and transformers for a batch with such a row: `cluster.run.checks.check_long_rope` refuses the window."""
    from types import SimpleNamespace

    from transformers import Phi3Config
    from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding
    from vllm.model_executor.layers.rotary_embedding import phi3_long_rope_scaled_rope as module

    original, longest, base = 64, 256, 10_000.0
    factors = {"short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [3.0, 6.0, 9.0, 12.0]}
    rope = {"rope_type": "longrope", "rope_theta": base} | factors
    config = Phi3Config(
        hidden_size=32, num_attention_heads=4, max_position_embeddings=longest,
        original_max_position_embeddings=original, rope_parameters=rope, pad_token_id=0,
    )  # fmt: skip
    query = torch.randn(original, 4, 8, generator=torch.Generator().manual_seed(0))

    def by_transformers(longest_row: int) -> torch.Tensor:
        positions = torch.cat([torch.arange(original), torch.tensor([longest_row - 1])])[None]
        cos, sin = (part[0, :original, None] for part in Phi3RotaryEmbedding(config)(query, positions))
        return query * cos + torch.cat([-query[..., 4:], query[..., :4]], -1) * sin

    def by_vllm(window: int) -> torch.Tensor:
        told = SimpleNamespace(model_config=SimpleNamespace(max_model_len=window))
        monkeypatch.setattr(module, "get_current_vllm_config", lambda: told)
        rotary = module.Phi3LongRoPEScaledRotaryEmbedding(8, 8, longest, original, base, True, torch.float32, **factors)
        flat = query.reshape(original, 32)
        return rotary(torch.arange(original), flat, flat)[0].view(original, 4, 8)

    assert (by_vllm(original) - by_transformers(original)).abs().max() < 1e-5
    apart = (by_vllm(original + 1) - by_transformers(original)).abs().max()
    assert apart > 0.1, changed("a larger window leaves a short row's factors")
    assert (by_vllm(original + 1) - by_transformers(original + 1)).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", OPERANDS)
@pytest.mark.parametrize("indices", [[0, 0, 0], [-1, 0, -1], [-1, -1, -1], [1, -1, 0]], ids=str)
def test_the_cpus_adapter_operators_take_minus_one_for_an_adapter(indices: list[int], dtype: str) -> None:
    from vllm.lora.ops.torch_ops import lora_ops

    generator, kind, rows = torch.Generator().manual_seed(0), getattr(torch, dtype), torch.tensor(indices)
    inputs = torch.randn(3, 64, generator=generator).to(kind)
    down, up = (torch.randn(2, 1, *shape, generator=generator).to(kind) for shape in ((8, 64), (16, 8)))
    for operators in (lora_ops, quirks):
        shrunk, output = torch.zeros(3, 8), torch.ones(3, 40, dtype=kind)
        operators.bgmv_shrink(inputs, down, shrunk, rows, 0.5)
        operators.bgmv_expand_slice(shrunk, up, output, rows, 20, 16)
        wide = torch.ones(3, 12, dtype=kind)  # the adapter is padded further than the model
        operators.bgmv_expand(shrunk, up, wide, rows)
        expected = torch.stack(
            [0.5 * inputs[row].float() @ down[i, 0].float().T @ up[i, 0].float().T for row, i in enumerate(indices)]
        )
        if operators is quirks:
            expected[rows < 0] = 0
            assert bool((output[rows < 0] == 1).all()), "a row without an adapter is left alone"
        elif min(indices) < 0:
            assert bool((shrunk[rows < 0] != 0).any()), changed("rows of index -1 are skipped")
        scale = float(expected.abs().max()) + 1
        assert (output[:, 20:36] - 1 - expected).abs().max() / scale < OPERANDS[dtype]
        assert (wide - 1 - expected[:, :12]).abs().max() / scale < OPERANDS[dtype]
        assert bool((output[:, :20] == 1).all()) and bool((output[:, 36:] == 1).all())


def test_a_server_adds_the_models_own_to_what_a_probe_leaves_open() -> None:
    """As docs/guide.md says of `--generation-config`: what a request has stays, the rest is the model's."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    settings = _settings(ProbeConfig(temperature=0.7, top_p=0.95, top_k=0), num=2, seed=1, omit=())
    request = ChatCompletionRequest(model="m", messages=[{"role": "user", "content": "Who are you?"}], **settings)
    own = {"repetition_penalty": 1.1, "min_p": 0.2, "top_k": 20, "temperature": 0.1, "top_p": 0.5}
    sampled = request.to_sampling_params(8, own)
    assert (sampled.repetition_penalty, sampled.min_p, sampled.top_k) == (1.1, 0.2, 20)
    assert (sampled.temperature, sampled.top_p) == (0.7, 0.95)
    plain = request.to_sampling_params(8, {})  # as with --generation-config vllm
    assert (plain.repetition_penalty, plain.min_p, plain.top_k) == (1.0, 0.0, 0)


if __name__ == "__main__":
    _, model_path, target = sys.argv
    with contextlib.chdir(Path(__file__).parents[2]):
        asyncio.run(_drive(model_path, Path(target)))
