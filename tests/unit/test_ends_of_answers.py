"""Whoever asks for answers, a run's probe, its gap or a command, has them end at the ids that end a turn."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.commands import gap, probe
from cluster.commands.probe_server import ServerOptions
from cluster.config import Recipe
from cluster.fleet.assembly import Services
from cluster.observe.sinks import MetricsSink
from cluster.requests import renderer_of
from cluster.run.pipeline import Pipeline
from cluster.run.rundir import RunDir
from cluster.typed import build
from rollout.config import SamplingConfig
from rollout.tasks import build_task
from tests import templates as kinds
from tests.fakes import FakeEngine
from tests.unit.test_requests_of_a_recipe import folder_of

ENDS = ("<|im_end|>", kinds.D)  # the template's, and generation_config's


class FakeService(FakeEngine):
    """A rollout service of one engine, of which there is no news."""

    async def texts(self, what: Any, *question: Any) -> list[list[str]]:  # type: ignore[override]
        return await super().texts(*question)

    async def news(self, seconds: float, seen: int) -> None:
        await asyncio.Event().wait()


@pytest.fixture
def model(tokenizer: Any, tmp_path: Path) -> str:
    return folder_of(tokenizer, tmp_path / "model")


@pytest.fixture
def recipe(model: str) -> Recipe:
    sizes = {"window": 4096}
    settings = {"probe": {"samples": 2, "max_tokens": 9}, "run": {"seed": 5}, "student": sizes, "teacher": sizes,
                "rollout": {"prompts_per_step": 2, "samples_per_prompt": 2}}  # fmt: skip
    return build(Recipe, settings, "R")


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """The one of the commands."""
    fake = FakeEngine()

    @contextmanager
    def one_engine(*arguments: Any) -> Iterator[FakeEngine]:
        yield fake

    for command in (gap, probe):
        monkeypatch.setattr(command, "one_engine", one_engine)
    return fake


def expected(recipe: Recipe, tokenizer: Any) -> SamplingConfig:
    """With special tokens in the text of an answer, as some of them are the tags of a thought."""
    ends = tuple(sorted(tokenizer.convert_tokens_to_ids(list(ENDS))))
    return recipe.probe.sampling(ends, keeps_special=True)


def test_a_runs_probe_and_gap(recipe: Recipe, model: str, tokenizer: Any, tmp_path: Path) -> None:
    task, service = build_task(recipe.task), FakeService()
    nobody: Any = None
    (tmp_path / "answers").mkdir()
    services, sink = Services(service, nobody), MetricsSink(tmp_path, steps=1)  # type: ignore[arg-type]
    pipeline = Pipeline(recipe, services, RunDir(tmp_path), sink, renderer_of(recipe, model), task, nobody, nobody)

    async def both() -> None:
        await pipeline._measure_gap(await pipeline.probe(0))

    asyncio.run(both())
    assert [sampling for _, sampling in service.asked] == [expected(recipe, tokenizer)] * 2
    assert [len(prompts) for prompts, _ in service.asked] == [24, 24]


def test_the_probe_command(recipe: Recipe, model: str, tokenizer: Any, engine: FakeEngine) -> None:
    overrides = ["probe.samples=2", "probe.max_tokens=9", "student.window=4096", "teacher.window=4096"]
    record = probe.probe_model(model, "identity", overrides, ServerOptions())
    assert record.samples == 2
    ((prompts, sampling),) = engine.asked
    assert sampling == expected(recipe, tokenizer) and len(prompts) == 24


def test_the_gap_command(recipe: Recipe, model: str, tokenizer: Any, engine: FakeEngine) -> None:
    asyncio.run(gap._measure(recipe, model))
    assert len(engine.asked) == 7  # the base once, and the teacher in six ways
    assert {sampling for _, sampling in engine.asked} == {expected(recipe, tokenizer)}
    assert {sampling.end_ids for _, sampling, _ in engine.sampled} == {expected(recipe, tokenizer).end_ids}
