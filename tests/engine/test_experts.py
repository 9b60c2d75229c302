"""A model whose experts transformers keeps fused, and the text model of one that takes images, pushed to a real vLLM
engine under the names that their files have."""

import asyncio
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cluster.models import TEXT_PART
from tests.families import tiny, wrapped_gemma3
from tests.reference import logprobs_of
from tests.runs import ROOT

PROMPT = np.array([1, 969, 198, 534, 260, 2], np.int32)
RESPONSE = np.array([504, 357, 282, 464, 314, 704, 30, 2], np.int32)
RECEIVER = "cluster.weights.receiver.WeightReceiver"


class PlainEngine:
    """A `ZeroEngine` as a source of weights: a causal LM after a large, known update of every parameter."""

    device = torch.device("cpu")

    def __init__(self, model: str) -> None:
        from transformers import AutoModelForCausalLM

        from learner.names import FileNames, held_tensors

        self.causal_lm = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.causal_lm.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        names, held = FileNames(self.causal_lm), held_tensors(self.causal_lm)
        self._shapes, self._state = list(names.shapes(held)), names.split_all(held)

    def parameter_shapes(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        return self._shapes

    def full_tensors(self, groups: Sequence[Sequence[str]]) -> Iterator[tuple[str, Tensor]]:
        yield from ((name, self._state[name].detach()) for group in groups for name in group)


async def _drive(model: str) -> dict[str, Any]:

    from cluster.weights.source import TrainerSource
    from cluster.weights.transports import Meeting, transport
    from rollout.config import EngineConfig
    from rollout.engine import Engine
    from tests.engine.test_weight_handoff import InProcessClient

    learner = PlainEngine(model)
    engine = Engine(model, EngineConfig(dtype="float32", window=64), "cpu", "edge_shm", RECEIVER)
    before = (await engine.score([PROMPT], [RESPONSE]))[0].tolist()
    source, loop = TrainerSource(learner), asyncio.get_running_loop()  # type: ignore[arg-type]

    def send() -> None:
        meeting, client = Meeting(0, "127.0.0.1", 1, 60.0, 0), InProcessClient(engine, loop, 1)
        transport("shm").sender(meeting, client, source).send_weights()

    await asyncio.to_thread(send)
    after = (await engine.score([PROMPT], [RESPONSE]))[0].tolist()
    state = await engine.weight_state()
    engine.shutdown()
    with torch.no_grad():
        expected = logprobs_of(learner.causal_lm, PROMPT, RESPONSE).tolist()
    return {"before": before, "after": after, "expected": expected, "state": state, "sent": source.digest.hexdigest()}


FAMILIES = ("qwen3_moe", "mixtral", "olmoe", "glm4_moe")
WRAPPED = "wrapper"
TEXT = f"{WRAPPED}-text"  # as the refusal of the wrapper has it written: on a CPU the only way to train one


@pytest.fixture(scope="module")
def results(default_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What was found of each of `FAMILIES` and of `TEXT`, one after another in one process, which imports vLLM once."""
    from transformers import AutoTokenizer

    folder, tokenizer = tmp_path_factory.mktemp("experts"), AutoTokenizer.from_pretrained(str(default_model))
    sizes = {"hidden_size": 128, "head_dim": 32, "vocab_size": 49152}  # vLLM on CPUs knows no smaller heads
    for family in FAMILIES:
        # It pads experts that are no multiple of 32, which no reload fits.
        experts = "intermediate_size" if family in ("mixtral", "olmoe") else "moe_intermediate_size"
        tokenizer.save_pretrained(tiny(family, folder / family, **sizes, **{experts: 128}))
    tokenizer.save_pretrained(wrapped_gemma3(folder / WRAPPED, **sizes))
    command = shlex.split(f"{TEXT_PART} {folder / WRAPPED}".replace("python", sys.executable, 1))
    subprocess.run(command, check=True, timeout=400)
    command = [sys.executable, "-m", "tests.engine.test_experts", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found


@pytest.mark.engine
@pytest.mark.parametrize("name", [*FAMILIES, TEXT])
def test_an_engine_computes_what_was_pushed(results: dict[str, Any], name: str) -> None:
    """And other things before it."""
    found = results[name]
    before, after, expected = (np.array(found[key]) for key in ("before", "after", "expected"))
    assert np.abs(before - expected).mean() > 0.3
    assert np.abs(after - expected).max() < 1e-3
    assert found["state"] == [1, found["sent"]]


if __name__ == "__main__":
    place = Path(sys.argv[1])
    answers = {name: asyncio.run(_drive(str(place / name))) for name in (*FAMILIES, TEXT)}
    (place / "found.json").write_text(json.dumps(answers))
