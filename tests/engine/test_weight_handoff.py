"""Engine-to-engine truth of the hand-off: real vLLM engines, vLLM's own lifecycle, both transports of CPUs.

The model has tied embeddings: a stale packed lm_head leaves every checksum right and every output wrong.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.fakes import repeat_head, tiny_model
from tests.reference import logprobs_of
from tests.runs import side_by_side

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


def nudge(causal_lm: Any) -> None:
    """A change of one weight in a hundred, as many as a step's at a small learning rate, but larger."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in causal_lm.parameters():
            chosen = torch.rand(parameter.shape, generator=generator) < 0.01
            parameter[chosen] *= 1.25


def digest_of(causal_lm: Any) -> str:
    from cluster.weights.digest import WeightsDigest

    digest = WeightsDigest()
    for name, parameter in causal_lm.named_parameters():
        digest.add(name, parameter)
    return digest.hexdigest()


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

    from cluster.weights.delta import Pushes
    from cluster.weights.transports import Meeting
    from cluster.weights.transports import transport as transport_of
    from rollout.config import EngineConfig
    from rollout.engine import Engine

    changed = changed_model(model)
    sent = digest_of(changed)
    engine = Engine(model, EngineConfig(dtype="float32", window=64), "cpu", backend, receiver)
    before = (await engine.score([PROMPT], [RESPONSE]))[0].tolist()
    fresh = await engine.weight_state()
    loop = asyncio.get_running_loop()

    def opened(version: int, pushes: Pushes | None = None) -> Any:
        meeting, client = Meeting(0, "127.0.0.1", 1, 60.0, 0, pushes), InProcessClient(engine, loop, version)
        return transport_of(transport).sender(meeting, client, ModuleSource(changed))

    async def what_changed() -> list[dict[str, Any]]:
        """Of pushes of what changed, over another connection: at first whole."""
        found, pushes = list[dict[str, Any]](), Pushes()
        sender = await asyncio.to_thread(opened, 6, pushes)
        for _ in range(2):
            await asyncio.to_thread(sender.send_weights)
            scores = (await engine.score([PROMPT], [RESPONSE]))[0].tolist()
            state = await engine.weight_state()
            found.append({"bytes": pushes.num_bytes, "after": scores, "state": state, "sent": digest_of(changed)})
            nudge(changed)
        return found

    (refused,) = await asyncio.gather(asyncio.to_thread(lambda: opened(5).send_weights()), return_exceptions=True)
    after = [] if refused else (await engine.score([PROMPT], [RESPONSE]))[0].tolist()  # it is amid an update for good
    state = await engine.weight_state()
    found = {"before": before, "after": after, "fresh": fresh, "state": state, "sent": sent}
    found |= {"refused": str(refused or ""), "what_changed": await what_changed() if transport == "gloo" else []}
    engine.shutdown()
    return found


RECEIVER = "cluster.weights.receiver.WeightReceiver"
DRIVES = {
    "shm": ("shm", "edge_shm", RECEIVER),
    "gloo": ("gloo", "edge_gloo", RECEIVER),
    "unmended": ("shm", "edge_unmended", "tests.unmended.UnmendedReceiver"),
}
REPEATED = ("shm", "edge_shm", RECEIVER)


@pytest.fixture(scope="module")
def repeated_model(default_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny tied model whose file repeats the embedding as the head."""
    sizes = {"vocab": 49152, "hidden_size": 128, "head_dim": 32, "dtype": "bfloat16"}
    folder = tmp_path_factory.mktemp("repeated")
    return repeat_head(tiny_model(folder, tokenizer_from=default_model, **sizes))


@pytest.fixture(scope="module")
def results(
    default_model: Path, repeated_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """What each of `DRIVES` found, run side by side."""
    folder = tmp_path_factory.mktemp("handoff")
    scripts = {name: [__file__, str(default_model), *how, str(folder / name)] for name, how in DRIVES.items()}
    scripts["repeated"] = [__file__, str(repeated_model), *REPEATED, str(folder / "repeated")]
    side_by_side(scripts)
    return {name: json.loads((folder / name).read_text()) for name in scripts}


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
    assert result["state"] == [5, result["sent"]] and not result["refused"]


def test_a_push_of_what_changed_makes_the_engine_the_learners(
    results: dict[str, dict[str, Any]], default_model: Path
) -> None:
    changed = changed_model(str(default_model))
    size = sum(parameter.nbytes for parameter in changed.parameters())
    whole, some = results["gloo"]["what_changed"]
    assert whole["after"] == results["gloo"]["after"] and size <= whole["bytes"] < 1.001 * size
    nudge(changed)
    expected = np.array(hf_logprobs(changed))
    assert np.abs(np.array(whole["after"]) - expected).mean() > 0.1  # the change is not a small one
    assert np.abs(np.array(some["after"]) - expected).max() < 1e-3
    assert 0.01 * size < some["bytes"] < 0.02 * size
    assert whole["state"] == [6, results["gloo"]["sent"]] and some["state"] == [6, some["sent"]]
    assert whole["sent"] != some["sent"]


def test_a_tied_head_that_the_file_repeats_takes_the_learners_weights(
    results: dict[str, dict[str, Any]], repeated_model: Path
) -> None:
    """vLLM then has a head of its own, which shares the embedding's weight."""
    result = results["repeated"]
    expected = np.array(hf_logprobs(changed_model(str(repeated_model))))
    assert np.abs(np.array(result["before"]) - expected).mean() > 0.3
    assert np.abs(np.array(result["after"]) - expected).max() < 1e-3
    assert result["state"] == [5, result["sent"]]


def test_a_stale_tied_head_is_refused_by_name(results: dict[str, dict[str, Any]]) -> None:
    """Every number that was sent has arrived, and the head computes with those of before all the same."""
    result = results["unmended"]
    assert "weights: lm_head computes with other weights than it was sent" in result["refused"]
    assert result["state"] == result["fresh"] == [0, ""]


if __name__ == "__main__":
    model, transport, backend, receiver, target = sys.argv[1:]
    Path(target).write_text(json.dumps(asyncio.run(_drive(model, transport, backend, receiver))))
