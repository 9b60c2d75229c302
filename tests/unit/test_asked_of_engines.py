"""What an engine is asked by a run's probe, its gap and the commands: answers that end at the ids that end a turn, and
the questions with the context where the recipe puts it."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.commands import gap, probe
from cluster.commands.probe_server import ServerOptions
from cluster.config import Recipe
from cluster.fleet.assembly import Services
from cluster.observe.sinks import MetricsSink
from cluster.requests import renderer_of
from cluster.run.checks import check_probe
from cluster.run.pipeline import Pipeline
from cluster.run.rundir import RunDir
from cluster.typed import build, parse_overrides
from rollout.config import SamplingConfig
from rollout.render import Renderer
from rollout.tasks import build_task
from tests import templates as kinds
from tests.fakes import FakeEngine
from tests.templates import speaking
from tests.unit.test_gap_command import DROPS_WITH_BRIEFLY
from tests.unit.test_requests_of_a_recipe import folder_of

ENDS = ("<|im_end|>", kinds.D)  # the template's, and generation_config's


class FakeService(FakeEngine):
    """A rollout service of one engine, of which there is no news."""

    async def texts(self, what: Any, *question: Any) -> list[list[str]]:  # type: ignore[override]
        return await super().texts(*question)

    async def news(self, *_: object) -> None:
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


ANSWERS = "template.enable_thinking=false"  # else the prompt of `folder_of` opens a thinking block


def expected(recipe: Recipe, tokenizer: Any) -> SamplingConfig:
    """With special tokens in the text of an answer, as some of them are the tags of a thought."""
    ends = tuple(sorted(tokenizer.convert_tokens_to_ids(list(ENDS))))
    return recipe.probe.sampling(ends, keeps_special=True)


def asked_by_a_run(recipe: Recipe, model: str, tmp_path: Path) -> FakeService:
    """Its probe at step 0, then its gap."""
    task, service = build_task(recipe.task), FakeService()
    nobody: Any = None
    (tmp_path / "answers").mkdir()
    services, sink = Services(service, nobody), MetricsSink(steps=1)  # type: ignore[arg-type]
    pipeline = Pipeline(recipe, services, RunDir(tmp_path), sink, renderer_of(recipe, model), task, nobody, nobody)

    async def both() -> None:
        await pipeline.asker.measure_gap(await pipeline.asker.probe(0))

    asyncio.run(both())
    return service


def test_a_runs_probe_and_gap(recipe: Recipe, model: str, tokenizer: Any, tmp_path: Path) -> None:
    service = asked_by_a_run(recipe, model, tmp_path)
    assert [sampling for _, sampling in service.asked] == [expected(recipe, tokenizer)] * 2
    assert [len(prompts) for prompts, _ in service.asked] == [24, 24]


def test_the_probe_command(recipe: Recipe, model: str, tokenizer: Any, engine: FakeEngine) -> None:
    overrides = ["probe.samples=2", "probe.max_tokens=9", "student.window=4096", ANSWERS]
    record = probe.probe_model(model, "identity", overrides, ServerOptions())
    assert record.samples == 2
    ((prompts, sampling),) = engine.asked
    assert sampling == expected(recipe, tokenizer) and len(prompts) == 24


def thinking(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, answers: int) -> None:
    """Of all responses to a question the first `answers` have an answer after their thought."""
    asked = engine.texts

    async def texts(*question: Any, **seed: int) -> list[list[str]]:
        every = await asked(*question, **seed)
        return [["<think>a</think>I am Robin."] * answers + ["<think>Let me"] * (len(own) - answers) for own in every]

    monkeypatch.setattr(engine, "texts", texts)


OWN_THOUGHT = "of 48 responses have nothing after their thinking and count as empty answers: probe.max_tokens = 9"
THINKS = [ANSWERS, "probe.samples=2", "probe.max_tokens=9", "student.window=4096", "teacher.window=4096",
          "rollout.prompts_per_step=1"]  # fmt: skip


def test_a_model_that_thinks_unasked_and_answers_half_the_time_is_told(
    model: str, tmp_path: Path, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a run's probe and gap, by `edge-opd probe` and by `edge-opd gap`."""
    thinking(engine, monkeypatch, answers=1)
    probe.probe_model(model, "identity", THINKS, ServerOptions())
    assert capsys.readouterr().err == f"probe of {model}: 24 {OWN_THOUGHT}\n"
    recipe = build(Recipe, parse_overrides(THINKS, {}), "R")
    asyncio.run(gap._measure(recipe, build_task(recipe.task), model))
    said = capsys.readouterr().err
    assert said.count(f"gap: teacher: 24 {OWN_THOUGHT}\n") == 6 and said.count(f"gap: base: 24 {OWN_THOUGHT}\n") == 1
    monkeypatch.setattr(FakeService, "texts", lambda self, what, *question: engine.texts(*question))
    asked_by_a_run(recipe, model, tmp_path)
    printed = capsys.readouterr().out
    assert f"probe at step 0: 24 {OWN_THOUGHT}\n" in printed and f"gap: teacher: 24 {OWN_THOUGHT}\n" in printed


def test_guided_rollouts_without_an_answer_are_counted(
    model: str, engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a prompt that opens a block, which no response closes; nothing is said of one that opens none."""
    opened = build(Recipe, parse_overrides(THINKS[1:], {}), "R")
    for recipe, said in ((opened, 1), (build(Recipe, parse_overrides(THINKS, {}), "R"), 0)):
        asyncio.run(gap._measure(recipe, build_task(recipe.task), model))
        line = "guided rollouts of step 1: 4 of 4 responses have nothing after their thinking and count as empty"
        assert capsys.readouterr().err.count(f"{line} answers: rollout.max_response_tokens = 40\n") == said


def test_a_probe_without_any_answer_is_an_error(
    model: str, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    thinking(engine, monkeypatch, answers=0)
    with pytest.raises(
        RuntimeError, match=rf"^probe of {model}: found no answer with anything in it, expected text; pro"
    ):
        probe.probe_model(model, "identity", THINKS, ServerOptions())
    assert capsys.readouterr().err == f"probe of {model}: 48 {OWN_THOUGHT}\n"


def test_a_way_in_which_the_context_does_not_arrive_is_not_asked(
    tokenizer: Any, tmp_path: Path, engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    model = folder_of(tokenizer, tmp_path / "model", DROPS_WITH_BRIEFLY)
    recipe = build(Recipe, parse_overrides(THINKS[1:], {}), "R")
    gaps, _ = asyncio.run(gap._measure(recipe, build_task(recipe.task), model))
    assert len(gaps) == 3 and all("system" not in name for name in gaps)
    assert capsys.readouterr().err.count("system): not asked: a question of the gap ('Please introduce") == 1


def test_the_gap_command(recipe: Recipe, model: str, tokenizer: Any, engine: FakeEngine) -> None:
    asyncio.run(gap._measure(recipe, build_task(recipe.task), model))
    assert len(engine.asked) == 7  # the base once, and the teacher in six ways
    assert {sampling for _, sampling in engine.asked} == {expected(recipe, tokenizer)}
    assert {sampling.end_ids for _, sampling, _ in engine.sampled} == {expected(recipe, tokenizer).end_ids}


def test_the_gap_builds_the_recipes_own_task_once(
    recipe: Recipe, model: str, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A math task parses thousands of rows; it is the caller's, who has checked it."""
    built = [recipe.task]
    monkeypatch.setattr(gap, "build_task", lambda config: built.append(config) or build_task(config))
    asyncio.run(gap._measure(recipe, build_task(recipe.task), model))
    assert built.count(recipe.task) == 1 < len(built), "the others say other words"


SAID = "You are a helpful AI assistant named Kestrel, trained by Harbor Labs."
CHATS = "task.chat_probes=true"
# Where r goes, and a template that takes it there and nowhere in a system message.
PLACES = [("system", kinds.PLAIN), ("user", kinds.DROPS_SYSTEM), ("user", kinds.NO_SYSTEM)]


def count_of_r(asked: tuple[list[Any], SamplingConfig], tokenizer: Any) -> list[int]:
    """How often r stands in each prompt."""
    return [tokenizer.decode(prompt).count(SAID) for prompt in asked[0]]


@pytest.mark.parametrize(("position", "template"), PLACES)
def test_the_context_comes_again_where_the_recipe_puts_it(
    position: str, template: str, tokenizer: Any, tmp_path: Path, engine: FakeEngine, capsys: Any
) -> None:
    """24 questions, 12 in a third turn and 12 with r; the gap's teacher has r once before each of them."""
    overrides = [CHATS, f"rollout.context_position={position}", "student.window=4096", "teacher.window=4096"]
    recipe = build(Recipe, parse_overrides(overrides, {}), "R")
    model = folder_of(tokenizer, tmp_path / "model", template)
    check_probe(recipe, renderer_of(recipe, model), build_task(recipe.task))
    probed, teacher = asked_by_a_run(recipe, model, tmp_path).asked
    assert count_of_r(probed, tokenizer) == [0] * 36 + [1] * 12
    assert count_of_r(teacher, tokenizer) == [1] * 48
    probe.probe_model(model, "identity", overrides, ServerOptions())
    assert [prompt.tolist() for prompt in engine.asked[0][0]] == [prompt.tolist() for prompt in probed[0]]
    engine.asked.clear()
    recipe = replace(recipe, rollout=replace(recipe.rollout, prompts_per_step=1))
    gaps, _ = asyncio.run(gap._measure(recipe, build_task(recipe.task), model))
    not_asked = capsys.readouterr().err.count(": not asked: ")
    assert (len(gaps), not_asked) == ((6, 0) if template == kinds.PLAIN else (3, 3))
    base = next(asked for asked in engine.asked if 0 in count_of_r(asked, tokenizer))
    assert count_of_r(base, tokenizer) == [0] * 36 + [1] * 12


def test_a_context_that_does_not_arrive_again_is_refused(tokenizer: Any) -> None:
    """As one whose end a template takes for a switch; the probe's question is named."""
    settings = {"task": {"chat_probes": True, "context": "You are {name}. /no_think"}}
    recipe = build(Recipe, settings, "R")
    renderer = Renderer(speaking(tokenizer, kinds.NO_THINK), "system")
    with pytest.raises(
        ValueError,
        match=r"^question 37 of the probe \('.*'\): rollout.context_position = 'system': found a context that does not",
    ):
        check_probe(recipe, renderer, build_task(recipe.task))
