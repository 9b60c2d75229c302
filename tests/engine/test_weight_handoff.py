"""Engine-to-engine truth of the hand-off: real vLLM engines, vLLM's own lifecycle, both transports of CPUs.

The model has tied embeddings: a stale packed lm_head leaves every checksum right and every output wrong.
"""

import asyncio
import hashlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.reference import logprobs_of
from tests.runs import free_port, side_by_side

pytestmark = pytest.mark.engine

PROMPT = np.array([1, 9690, 198, 5345, 260, 2], np.int32)
RESPONSE = np.array([504, 3575, 282, 4649, 314, 7042, 30, 2], np.int32)


def changed_model(model: str) -> Any:
    """The model after a large, known update of every parameter, the tied embedding included."""
    causal_lm = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in causal_lm.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.1 * parameter.float().std(unbiased=False)
            parameter.add_(noise.to(parameter.dtype))
    return causal_lm


def hf_logprobs(causal_lm: Any) -> list[float]:
    return logprobs_of(causal_lm.float(), PROMPT, RESPONSE).tolist()


class InProcessClient:
    """vLLM's weight-sync protocol over an engine on another thread's event loop."""

    def __init__(self, engine: Any, loop: asyncio.AbstractEventLoop, version: int) -> None:
        self._engine, self._loop, self._version = engine, loop, version

    def _call(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=120)

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        self._call(self._engine.init_weight_transfer_engine(WeightTransferInitRequest(init_info=init_info)))

    def start_weight_update(self) -> None:
        self._call(self._engine.start_weight_update())

    def update_weights(self, update_info: Any) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        self._call(self._engine.update_weights(WeightTransferUpdateRequest(update_info=update_info)))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._call(self._engine.finish_weight_update())
        self._call(self._engine.update_weight_version(str(self._version)))


async def _drive(model: str, transport: str, backend: str, receiver: str) -> dict[str, Any]:
    from vllm.distributed.weight_transfer.base import ModuleSource
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

    from cluster.weights.digest import WeightsDigest
    from cluster.weights.table import TRANSPORTS, Meeting
    from rollout.config import EngineConfig
    from rollout.engine import Engine

    changed = changed_model(model)
    digest = WeightsDigest()
    for name, parameter in changed.named_parameters():
        digest.add(name, parameter)
    engine = Engine(model, EngineConfig(dtype="float32", window=64), "cpu", backend, receiver)
    before = (await engine.score([PROMPT], [RESPONSE]))[0].tolist()
    fresh = await engine.weight_state()
    loop = asyncio.get_running_loop()

    def send() -> None:
        info = TRANSPORTS[transport](Meeting(0, "127.0.0.1", free_port(), 1, 60.0, 0))
        client = InProcessClient(engine, loop, 5)
        WeightTransferTrainerFactory.trainer_init(info, client=client, source=ModuleSource(changed)).send_weights()

    await asyncio.to_thread(send)
    after = (await engine.score([PROMPT], [RESPONSE]))[0].tolist()
    state = await engine.weight_state()
    engine.shutdown()
    return {"before": before, "after": after, "fresh": fresh, "state": state, "sent": digest.hexdigest()}


RECEIVER = "cluster.weights.receiver.WeightReceiver"
DRIVES = {
    "shm": ("shm", "edge_shm", RECEIVER),
    "gloo": ("gloo", "edge_gloo", RECEIVER),
    "unmended": ("shm", "edge_unmended", "tests.unmended.UnmendedReceiver"),
}


@pytest.fixture(scope="module")
def results(default_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What each of `DRIVES` found, run side by side."""
    folder = tmp_path_factory.mktemp("handoff")
    side_by_side({name: [__file__, str(default_model), *how, str(folder / name)] for name, how in DRIVES.items()})
    return {name: json.loads((folder / name).read_text()) for name in DRIVES}


@pytest.mark.parametrize(("largest", "buffer"), [(5, 1 << 30), (3 << 30, 3 << 30)])
def test_the_largest_tensor_fits_the_buffer_of_cuda_ipc(largest: int, buffer: int) -> None:
    from cluster.weights.table import TRANSPORTS, Meeting

    info: Any = TRANSPORTS["ipc"](Meeting(0, "127.0.0.1", 1, 1, 60.0, largest))
    assert info.packed and info.packed_buffer_size_bytes == buffer


@pytest.mark.parametrize("transport", ["shm", "gloo"])
def test_a_push_changes_the_engine_to_the_learners_weights(
    results: dict[str, dict[str, Any]], default_model: Path, transport: str
) -> None:
    result = results[transport]
    original = AutoModelForCausalLM.from_pretrained(str(default_model), dtype=torch.float32)
    assert np.abs(np.array(result["before"]) - hf_logprobs(original)).max() < 1e-3
    expected = np.array(hf_logprobs(changed_model(str(default_model))))
    assert np.abs(np.array(result["before"]) - expected).mean() > 0.5  # the update is not a small one
    assert np.abs(np.array(result["after"]) - expected).max() < 1e-3
    assert result["fresh"] == [0, ""]
    assert result["state"] == [5, result["sent"]]


def test_only_the_canary_sees_a_stale_tied_head(results: dict[str, dict[str, Any]], default_model: Path) -> None:
    """Version and digest are right, the outputs are not: this is why the canary exists."""
    result = results["unmended"]
    assert result["state"] == [5, result["sent"]]
    expected = np.array(hf_logprobs(changed_model(str(default_model))))
    assert np.abs(np.array(result["after"]) - expected).mean() > 0.1  # the default canary_tolerance


def test_a_receiver_that_never_comes_is_given_up() -> None:
    from cluster.weights.transports.gloo import broadcast, open_group

    begun = time.monotonic()
    with pytest.raises(RuntimeError):  # gloo's, of the rendezvous or of the first tensor
        broadcast(open_group("127.0.0.1", free_port(), rank=0, size=2, timeout_s=2.0), torch.ones(3))
    assert time.monotonic() - begun < 30


def tensors() -> Iterator[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    yield "a", torch.randn(3, 5, generator=generator).bfloat16()
    yield "b", torch.randn(7, generator=generator)


@pytest.mark.parametrize("damage", ["none", "order", "value", "swap", "shape", "missing", "dtype"])
def test_digest_sees_every_kind_of_damage(damage: str) -> None:
    from cluster.weights.digest import WeightsDigest

    named = dict(tensors())
    reference, other = WeightsDigest(), WeightsDigest()
    for name, tensor in named.items():
        reference.add(name, tensor)
    if damage == "value":
        named["b"] = named["b"].clone()
        named["b"][-1] += 1e-6
    elif damage == "swap":
        named["b"] = named["b"].flip(0)
    elif damage == "shape":
        named["a"] = named["a"].view(5, 3)
    elif damage == "missing":
        del named["a"]
    elif damage == "dtype":
        named["a"] = named["a"].view(torch.float16)
    items = list(named.items())
    for name, tensor in reversed(items) if damage == "order" else items:
        other.add(name, tensor)
    assert (reference.hexdigest() == other.hexdigest()) == (damage in ("none", "order"))


@pytest.mark.parametrize("length", [0, 1, 3, 2**22 + 2**21 + 5], ids=str)  # the last is more than one chunk of words
def test_the_digests_sums_are_those_of_its_documentation(length: int) -> None:
    from cluster.weights.digest import WeightsDigest

    tensor = torch.randn(length + 3, generator=torch.Generator().manual_seed(2)).bfloat16()[3:]  # not at a word's start
    digest = WeightsDigest()
    digest.add("a", tensor)
    content = tensor.view(torch.uint8).numpy().tobytes()
    words = np.frombuffer(content + bytes(-len(content) % 8), np.uint64)
    factors = np.arange(1, 2 * len(words), 2, dtype=np.uint64)
    sums = (int(total.astype(np.int64)) for total in (words.sum(), (words * factors).sum()))
    line = " ".join(["a torch.bfloat16", str((length,)), *map(str, sums)])
    assert digest.hexdigest() == hashlib.sha256(line.encode()).hexdigest()[:16]


if __name__ == "__main__":
    model, transport, backend, receiver, target = sys.argv[1:]
    Path(target).write_text(json.dumps(asyncio.run(_drive(model, transport, backend, receiver))))
