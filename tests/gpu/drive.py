"""Engines and learners on a GPU, each in a process of its own, for the tests of this folder.

python -m tests.gpu.drive ACT TARGET.json [ARGUMENT...]
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHARE = 0.15  # of the card, for each engine: five of them run side by side
# A cache of their own size: what is left of its share an engine would measure while the others allocate.
BESIDE: dict[str, Any] = {"gpu_memory_utilization": SHARE, "kv_cache_gib": 2.0, "enforce_eager": True}
PUSHES = 4
RECEIVER = "cluster.weights.receiver.WeightReceiver"


async def numerics(model: str, dtype: str, runner: str) -> Any:
    """What tests/engine/test_engine_numerics.py asks of a CPU's engine. runner: "0" or "1", vLLM's second one."""
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = runner
    from tests.engine.test_engine_numerics import drive

    return await drive(model, dtype, "cuda", **BESIDE)


class Weights:
    """Mixed into an engine's workers."""

    def weights_digest(self) -> str:
        from cluster.weights.digest import WeightsDigest

        digest = WeightsDigest()
        for name, parameter in self.get_model().named_parameters():  # type: ignore[attr-defined]
            digest.add(name, parameter.data)
        return digest.hexdigest()


async def sleeping(model: str) -> Any:
    """An engine with CUDA graphs, as in a run: what it samples and how it scores that; then its weights, scores and the
    card's free memory before sleep, in it and after."""
    from cluster.sizing.cards import own_cards
    from rollout.config import EngineConfig, SamplingConfig
    from rollout.engine import Engine
    from tests.engine.test_engine_numerics import WINDOW, requests

    config = EngineConfig(window=WINDOW, gpu_memory_utilization=SHARE)
    engine = Engine(model, config, "cuda", worker_extension="tests.gpu.drive.Weights", sleeps=True)
    made = requests(model)
    prompts = [one.sampler_ids for one in made]
    samples = await engine.sample(made, SamplingConfig(1.0, 24), seed=7)
    responses = [sample.response_ids for sample in samples]
    naps: list[dict[str, Any]] = []

    async def look(awake: bool) -> None:
        seen: dict[str, Any] = {"free": own_cards()[0].free}
        if awake:
            seen["digest"] = (await engine._llm.collective_rpc("weights_digest"))[0]
            seen["scores"] = [row.tolist() for row in await engine.score(prompts, responses)]
        naps.append(seen)

    await look(awake=True)
    for _ in range(2):
        await engine.sleep()
        await look(awake=False)
        await engine.wake_up()
        await look(awake=True)
    engine.shutdown()
    sampled = [[sample.response_ids.tolist(), sample.sampler_logprobs.tolist()] for sample in samples]
    return {"sampled": sampled, "naps": naps}


async def push(model: str, transport: str, trainer: str) -> Any:
    """Pushes of a changed model from here, on GPU `trainer`, to an engine on GPU 0: what the engine makes of it, and
    the seconds of the fastest but the first, in all and by what the engine is told."""
    import torch
    from vllm.distributed.weight_transfer.base import ModuleSource

    from cluster.weights.digest import WeightsDigest
    from cluster.weights.transports import Meeting, backend
    from cluster.weights.transports import transport as transport_of
    from rollout.config import EngineConfig
    from rollout.engine import Engine
    from rollout.vllm_quirks import IPC_ENVIRONMENT
    from tests.engine.test_weight_handoff import PROMPT, RESPONSE, InProcessClient, changed_model

    os.environ |= IPC_ENVIRONMENT
    config = EngineConfig(dtype="bfloat16", window=64, **BESIDE)
    engine = Engine(model, config, "cuda", backend(transport), RECEIVER)
    before = (await engine.score([PROMPT], [RESPONSE]))[0].tolist()
    changed, digest = changed_model(model).to(f"cuda:{trainer}"), WeightsDigest()
    for name, parameter in changed.named_parameters():
        digest.add(name, parameter.data)
    sizes = [parameter.nbytes for parameter in changed.parameters()]
    loop, pushes = asyncio.get_running_loop(), list[dict[str, float]]()

    class Client(InProcessClient):
        def _call(self, work: Any) -> None:
            begun = time.perf_counter()
            super()._call(work)
            parts[work.__name__] = parts.get(work.__name__, 0.0) + time.perf_counter() - begun

    def send() -> None:
        torch.cuda.set_device(int(trainer))  # each thread has its own
        meeting, client = Meeting(0, "127.0.0.1", 1, 60.0, max(sizes)), Client(engine, loop, 5)
        sender = transport_of(transport).sender(meeting, client, ModuleSource(changed))
        for _ in range(PUSHES):
            torch.cuda.synchronize()
            parts.clear()
            begun = time.perf_counter()
            sender.send_weights()
            pushes.append({"in all": time.perf_counter() - begun, **parts})

    parts: dict[str, float] = {}
    await asyncio.to_thread(send)
    found = {
        "before": before,
        "after": (await engine.score([PROMPT], [RESPONSE]))[0].tolist(),
        "state": await engine.weight_state(),
        "sent": digest.hexdigest(),
        "bytes": sum(sizes),
        "largest": max(sizes),
        "seconds": min(pushes[1:], key=lambda push: push["in all"]),
    }
    engine.shutdown()
    return found


async def adapter(model: str, *folders: str) -> Any:
    """What tests/engine/test_adapter.py asks of a CPU's engine; vLLM's kernels for adapters have no float32."""
    from tests.engine.test_adapter import drive

    return await drive(model, list(folders), "cuda", dtype="bfloat16", **BESIDE)


async def attention() -> Any:
    """The kernel of packed rows beside padded ones, in bfloat16, with float32 as the judge: differences of what comes
    out and of the gradients, by their norms. "norms": of the kernel of RMSNorm, beside a family's own."""
    import torch

    from learner import attention as module
    from tests.unit.test_attention import PACKS, attend, packed_of, streams_of

    found = {}
    for kind in PACKS:
        packed = packed_of(*PACKS[kind]).to("cuda")
        results = {}
        for way, dtype, takes in (("kernel", torch.bfloat16, True), ("padded", torch.bfloat16, False),
                                  ("exact", torch.float32, False)):  # fmt: skip
            module.takes_varlen = lambda *streams, takes=takes: takes
            sources = streams_of(packed_of(*PACKS[kind]), (4, 2), torch.bfloat16)
            streams = [stream.detach().to("cuda", dtype).requires_grad_() for stream in sources]
            out = attend(streams, packed)
            factors = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to("cuda")
            (out.float() * factors).sum().backward()
            results[way] = [out.detach().float(), *(stream.grad.float() for stream in streams)]
        found[kind] = apart(results)
    return found | {"norms": apart(norms())}


def apart(results: dict[str, list[Any]]) -> dict[str, list[float]]:
    """Of the kernel, and of what it is compared with, from what is exact."""
    return {
        way: [
            float((one - exact).norm() / exact.norm())
            for one, exact in zip(results[way], results["exact"], strict=True)
        ]
        for way in ("kernel", "padded")
    }


def norms() -> dict[str, list[Any]]:
    """What comes of the numbers of a micro-batch, and the gradients of these and of the weight."""
    import torch
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    from learner.norms import rms_norm

    results = {}
    for way, dtype in (("kernel", torch.bfloat16), ("padded", torch.bfloat16), ("exact", torch.float32)):
        norm, draw = LlamaRMSNorm(2048), torch.Generator().manual_seed(0)
        x, factors = (torch.randn(4096, 2048, generator=draw).to(torch.bfloat16) for _ in range(2))
        norm.weight.data.add_(torch.randn(2048, generator=draw).to(torch.bfloat16))
        norm, x = norm.to(torch.bfloat16).to("cuda", dtype), x.to("cuda", dtype).requires_grad_()
        out = rms_norm(x, norm.weight, norm.variance_epsilon) if way == "kernel" else norm(x)
        (out.float() * factors.to("cuda")).sum().backward()
        results[way] = [out.detach().float(), x.grad.float(), norm.weight.grad.float()]
    return results


def rows_of(number: int, response: int) -> list[Any]:
    """Of random tokens, all with a weight, under prompts of 64 tokens each."""
    import numpy as np

    from evidence.records import TrainRow

    rng, rows = np.random.default_rng(0), list[TrainRow]()
    for index in range(number):
        prompt, ids = (rng.integers(5, 40_000, size).astype(np.int32) for size in (64, response))
        with_r, without = (-rng.random(response, np.float32) for _ in range(2))
        evidence, weight = np.zeros(response, np.float32), np.ones(response, np.float32)
        rows.append(TrainRow(str(index), False, prompt, prompt, ids, with_r, without, evidence, weight))
    return rows


def trainer_of(model: str, **told: Any) -> Any:
    """A learner of one rank, which this process is."""
    from tests.runs import free_port

    port = str(free_port())
    os.environ.update(
        RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=port
    )
    from learner.config import LearnerConfig
    from learner.engine import ZeroEngine
    from learner.train import Trainer

    config = LearnerConfig(**told)
    return Trainer(ZeroEngine(model, config), config)


async def checkpoint(model: str, stage: str, optimizer: str, folder: str) -> Any:
    """Digests of a learner's weights: as they begin, after a step, which is saved, after the next one, and as the
    checkpoint has them."""
    from cluster.weights.digest import WeightsDigest
    from cluster.weights.source import export_groups

    trainer = trainer_of(model, lr=1e-3, zero_stage=int(stage), optimizer=optimizer, micro_batch_tokens=512)
    engine, rows, found = trainer.engine, rows_of(4, 65), list[str]()

    def look() -> None:
        digest = WeightsDigest()
        for name, tensor in engine.full_tensors(export_groups(engine)):
            digest.add(name, tensor)
        found.append(digest.hexdigest())

    look()
    trainer.step(rows)
    look()
    engine.save(folder, {"step": 1})
    trainer.step(rows)
    look()
    engine.load(folder, 1)
    look()
    trainer.step(rows)  # which its optimizer takes
    return found


async def learner(model: str, tokens: str) -> Any:
    """Seconds of the fastest learner step but the first over 16 rows of 1,024 tokens, and peak memory. tokens: of a
    micro-batch."""
    import torch

    from learner.report import PARTS

    trainer, rows = trainer_of(model, lr=1e-7, micro_batch_tokens=int(tokens)), rows_of(16, 961)
    seconds = list[float]()
    for _ in range(6):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        report = trainer.step(rows)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    parts = {part: report.metrics[f"{part}_s"].value for part in PARTS if f"{part}_s" in report.metrics}
    found = {"seconds": min(seconds[1:]), "tokens": 16 * 1024, "peak": torch.cuda.max_memory_allocated()}
    return found | {"last": seconds[-1], "parts": parts, "kernels": kernels(lambda: trainer.step(rows))}


def kernels(work: Callable[[], object]) -> dict[str, float]:
    """Seconds of each of the GPU's kernels while `work` is done, the longest first."""
    from torch.profiler import DeviceType, ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as watched:
        work()
    on_gpu = [event for event in watched.key_averages() if event.device_type == DeviceType.CUDA]
    seen = [event for event in on_gpu if not event.is_user_annotation]  # which have the time of all within them
    seconds = {event.key: event.self_device_time_total / 1e6 for event in seen}
    return dict(sorted(seconds.items(), key=lambda one: -one[1]))


ACTS: dict[str, Callable[..., Any]] = {
    act.__name__: act for act in (numerics, sleeping, push, adapter, attention, learner, checkpoint)
}

if __name__ == "__main__":
    act, target, *arguments = sys.argv[1:]
    Path(target).write_text(json.dumps(asyncio.run(ACTS[act](*arguments))))
