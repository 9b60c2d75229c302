"""An adapter and its base in the same steps of one real engine, on a CPU: each stream of each kind of evidence against
plain float32 forwards, while the engine samples with the adapter."""

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evidence.records import Floats, Ids, RolloutRequest, Sample
from learner.adapter import adapter_files
from rollout.config import AdapterConfig, EngineConfig, SamplingConfig
from rollout.score import score_all
from tests import fakes
from tests.engine.test_adapter import CONFIG, adapted, plain, trained
from tests.reference import logprobs_of
from tests.runs import side_by_side

pytestmark = pytest.mark.engine

TARGETS = tuple(f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down"))
LONG = SamplingConfig(1.0, 150)


def ids(start: int, length: int) -> Ids:
    return np.arange(start, start + length, dtype=np.int32)


def samples() -> list[Sample]:
    """Guided and plain rollouts of two prompts, each with r and two wrong ones, whose prompts end within a block of the
    prefix cache and at its end."""
    made = []
    for number, length in enumerate((64, 75)):
        x, with_r = ids(100 + 500 * number, length), ids(3000 + 500 * number, length + 32)
        wrong = tuple(ids(start + 500 * number, length + 7) for start in (6000, 9000))
        for index in range(4):
            name = f"{number}-{index}"
            request = RolloutRequest(name, f"p{number}", f"g{number}", index % 2 == 0, "system", x, with_r, wrong)
            response = np.concatenate([ids(40, 6), ids(200 + 11 * index, 8 + index)])
            nothing = np.zeros(len(response), np.float32)
            made.append(Sample(request, response, nothing, "length", 0, 0))
    return made


class Base:
    """The engine as a scorer without its adapter."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    async def score(self, prompts: Sequence[Ids], responses: Sequence[Ids]) -> list[Floats]:
        return await self._engine.score(prompts, responses, base=True)


async def _scored_beside(engine: Any, seed: int) -> dict[str, Any]:
    """Every stream of `samples`, scored while long rollouts are drawn with the adapter, and base rows after them."""
    prompt = ids(20_000 + seed, 70)
    request = RolloutRequest("long", "p", "g", False, "system", prompt, prompt)
    begun, scored_all = asyncio.Event(), asyncio.Event()

    async def draw() -> Sample:
        """Again and again for as long as there is something to score, however long that takes."""
        while True:
            drawn = await engine.sample([request] * 4, LONG, seed, begun=begun.set)
            if scored_all.is_set():
                return drawn[0]

    drawing = asyncio.create_task(draw())
    await begun.wait()
    scored, _ = await score_all(Base(engine), samples(), student=engine)
    scored_all.set()
    sampled = await drawing
    # Prefixes that the steps above left in the cache, of the base and of the adapter.
    again = [await engine.score([s.request.prompt_ids], [s.response_ids[::-1]], base=True) for s in samples()]
    return {
        "sampled": [sampled.response_ids.tolist(), sampled.sampler_logprobs.tolist()],
        "again": [rows[0].tolist() for rows in again],
        "teacher": [row.teacher_logprobs.tolist() for row in scored],
        "context": [row.teacher_context_logprobs.tolist() for row in scored],
        "wrong": [[stream.tolist() for stream in row.wrong_context_logprobs] for row in scored],
        "student": [row.student_logprobs.tolist() for row in scored],  # type: ignore[union-attr]
    }


async def _drive(model: str, folder: str) -> dict[str, Any]:
    from rollout.engine import Engine

    files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    adapter, config = AdapterConfig(CONFIG.lora_rank, TARGETS), EngineConfig(dtype="float32", window=320)
    engine, found = Engine(model, config, "cpu", adapter=adapter), dict[str, Any]()
    for version, name in enumerate(("unmended", "mended")):
        engine._mends_adapter = name == "mended"
        await engine._llm.reset_prefix_cache()
        await engine.load_adapter(files, version)
        found[name] = await _scored_beside(engine, seed=version)
    engine.shutdown()
    return found


@pytest.fixture(scope="module")
def models(default_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A small random model's folder, and it with an adapter."""
    sizes = {"vocab": 49152, "hidden_size": 128, "head_dim": 32, "initializer_range": 0.1}
    folder = fakes.tiny_model(tmp_path_factory.mktemp("mixed"), tokenizer_from=default_model, **sizes)
    return folder, adapted(folder, 0)


@pytest.fixture(scope="module")
def found(models: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    (model, student), folder = models, tmp_path_factory.mktemp("adapter")
    for name, content in adapter_files(trained(student), CONFIG).items():
        (folder / name).write_bytes(content)
    target = tmp_path_factory.mktemp("found") / "found.json"
    side_by_side({"mixed": [__file__, str(model), str(folder), str(target)]})
    return json.loads(target.read_text())


def error(model: Any, prompt: Ids, response: Ids | list[int], scores: list[float]) -> np.ndarray:
    """|difference| of each token, the first and the last included."""
    expected = logprobs_of(model, prompt, response).detach().numpy()
    assert len(scores) == len(expected)
    return np.abs(np.array(scores) - expected)


STREAMS = ("teacher", "context", "wrong", "student", "again")


def errors(models: tuple[Path, Any], streams: dict[str, Any], stream: str) -> list[np.ndarray]:
    folder, student = models
    base, made = plain(folder), samples()
    if stream == "wrong":
        return [
            error(base, prompt, s.response_ids, scores)
            for s, rows in zip(made, streams["wrong"], strict=True)
            for prompt, scores in zip(s.request.wrong_context_prompt_ids, rows, strict=True)
        ]
    if stream == "student":  # a plain rollout's own log-probs are the sampler's: zeros, here
        guided = [(s, row) for s, row in zip(made, streams["student"], strict=True) if s.request.guided]
        return [error(student, s.request.prompt_ids, s.response_ids, row) for s, row in guided]
    rows = zip(made, streams[stream], strict=True)
    if stream == "context":
        return [error(base, s.request.context_prompt_ids, s.response_ids, row) for s, row in rows]
    order = -1 if stream == "again" else 1
    return [error(base, s.request.prompt_ids, s.response_ids[::order], row) for s, row in rows]


@pytest.mark.parametrize("stream", STREAMS)
def test_each_stream_is_its_own_models_beside_sampling(
    found: dict[str, Any], models: tuple[Path, Any], stream: str
) -> None:
    wrong_by = errors(models, found["mended"], stream)
    print(
        f"{stream}: max {max(map(np.max, wrong_by)):.1e}, unmended {_mean(models, found, stream):.2f} nats in the mean"
    )
    assert len(wrong_by) >= 4 and all(row.max() < 1e-3 for row in wrong_by)


def _mean(models: tuple[Path, Any], found: dict[str, Any], stream: str) -> float:
    return float(np.mean(np.concatenate(errors(models, found["unmended"], stream))))


def test_without_the_mend_the_base_is_scored_with_the_adapter(found: dict[str, Any], models: tuple[Path, Any]) -> None:
    """So the test above could fail: the rows do meet in one step."""
    assert min(_mean(models, found, stream) for stream in ("teacher", "context", "wrong")) > 0.3


@pytest.mark.parametrize("name", ["unmended", "mended"])
def test_the_adapters_own_rollouts_are_the_students(found: dict[str, Any], models: tuple[Path, Any], name: str) -> None:
    response, scores = found[name]["sampled"]
    prompt = ids(20_000 + ("unmended", "mended").index(name), 70)
    assert error(models[1], prompt, response, scores).max() < 1e-3


if __name__ == "__main__":
    _, model_path, folder_path, target_path = sys.argv
    Path(target_path).write_text(json.dumps(asyncio.run(_drive(model_path, folder_path))))
