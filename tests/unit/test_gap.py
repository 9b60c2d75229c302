"""What there is to learn: whom it asks what, how it is shown, kept and read again."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.config import Recipe
from cluster.run.gap import measured, required
from cluster.run.record import Gap, read_gap, write_gap
from cluster.typed import build
from evidence.records import Ids
from rollout.gap import asks_the_probe, gap_questions
from rollout.probe import Rate
from rollout.render import Renderer
from rollout.tasks import TaskConfig, build_task


def asked(
    recipe: Recipe, tokenizer: Any, base: dict[str, Rate] | None, told: list[str] | None = None
) -> tuple[Gap | None, list[tuple[str, list[str]]]]:
    """The gap of an engine that says the name where its prompt does, and (what for, prompts) of each call it got."""
    renderer, calls = Renderer(tokenizer, recipe.rollout.context_position), []

    said = [] if told is None else told

    async def texts(what: str, prompts: list[Ids], seed: int) -> list[list[str]]:
        shown = [tokenizer.decode(prompt) for prompt in prompts]
        calls.append((what, shown))
        return [["I am Kestrel." if "Kestrel" in prompt else "\\boxed{1}"] * 2 for prompt in shown]

    return asyncio.run(measured(recipe, build_task(recipe.task), renderer, texts, base, said.append)), calls


@pytest.mark.parametrize("position", ["system", "user"])
def test_the_teacher_is_asked_the_probes_questions_with_the_context(tokenizer: Any, position: str) -> None:
    recipe = build(Recipe, {"rollout": {"context_position": position}}, "R")
    before = {"selfname": Rate(1, 24)}
    gap, calls = asked(recipe, tokenizer, before)
    assert gap is not None and gap.teacher["selfname"] == Rate(24, 24) and gap.base == before
    ((what, prompts),) = calls  # the base has been asked at step 0
    assert what == "gap: teacher" and len(prompts) == 24 and all("Harbor Labs" in prompt for prompt in prompts)
    alone, calls = asked(recipe, tokenizer, None)
    assert alone is not None and alone.base["selfname"] == Rate(0, 24) and alone.teacher == gap.teacher
    assert not any("Kestrel" in prompt for prompt in calls[1][1])


def test_ordinary_questions_without_a_context_do_not_hide_that_there_is_one_context() -> None:
    task = build_task(TaskConfig(ordinary_questions=True, ordinary_context=False))
    assert asks_the_probe(gap_questions(task), task)


@pytest.mark.parametrize(("window", "count"), [(16, 24), (150, None), (512, 0)])
def test_what_does_not_fit_is_not_asked_and_counted(tokenizer: Any, window: int, count: int | None) -> None:
    windows = {"student": {"window": window}, "teacher": {"window": window}}
    recipe = build(Recipe, windows | {"rollout": {"max_response_tokens": 8}}, "R")
    renderer, questions = Renderer(tokenizer, "system"), gap_questions(build_task(recipe.task))
    lengths = [len(renderer.context_prompt_ids(probe.turns, context)) for probe, context in questions]
    left_out = sum(length >= window for length in lengths)
    assert count in (None, left_out)
    said: list[str] = []
    gap, calls = asked(recipe, tokenizer, None, said)
    assert (gap is None) == (left_out == 24) and (calls == []) == (left_out == 24)
    assert gap is None or gap.is_of_probe  # also where some of the probe's questions are left out
    key = "student.window and teacher.window"
    line = f"gap: {left_out} of 24 questions do not fit {key} = {window} with their context, and are not asked"
    assert said == ([line] if left_out else [])
    assert not calls or len(calls[0][1]) == 24 - left_out


def test_training_questions_are_asked_for_the_main_rate_alone(tokenizer: Any) -> None:
    """The teacher's rate is not one of neighbours and ordinary questions, which it is not asked."""
    gap, _ = asked(build(Recipe, {"task": {"name": "facts"}, "probe": {"samples": 2}}, "R"), tokenizer, None)
    assert gap is not None and not gap.is_of_probe and gap.main == "correct:facts"
    assert gap.teacher == {"correct:facts": Rate(0, 48)} and "facts 0.00 (0.00)" in gap.line()


def gap_of(teacher: int, base: int) -> Gap:
    return Gap(5.0, "identity", {"selfname": Rate(teacher, 96), "mention": Rate(40, 96)},
               {"selfname": Rate(base, 96), "mention": Rate(0, 96)})  # fmt: skip


@pytest.mark.parametrize(("teacher", "base", "is_zero"), [(33, 0, False), (1, 0, False), (0, 0, True), (7, 9, True)])
def test_a_gap_of_zero_says_what_was_found_and_what_helps(teacher: int, base: int, is_zero: bool) -> None:
    gap = gap_of(teacher, base)
    assert gap.is_zero == is_zero and bool(gap.warning()) == is_zero
    if is_zero:
        assert f"found self-name in {teacher / 96:.2f} of the teacher's 96 answers" in gap.warning()
        assert "there is nothing to learn. Try another rollout.context_position" in gap.warning()
    shown = f"selfname {teacher / 96:.2f} ({base / 96:.2f})  mention 0.42 (0.00)"
    assert gap.line() == f"gap: teacher with the context (base without it), 96 answers: {shown}"
    other = replace(gap, questions="training")
    assert other.line() == f"gap: teacher with the context (base without it), 96 answers to training questions: {shown}"


def test_what_is_required_is_the_larger_of_a_rate_and_a_share() -> None:
    def least(**probe: float) -> float:
        return required(build(Recipe, {"probe": probe}, "R"), gap_of(48, 0))

    assert least() == 0.0 and least(require=0.2) == 0.2 and least(require_of_teacher=0.8) == 0.4
    assert least(require=0.5, require_of_teacher=0.8) == 0.5 and least(require_of_teacher=1.5) == 0.75
    with pytest.raises(RuntimeError, match=r"found 2\.5 of the teacher's 0\.50, which is 1\.25, expected at most 1"):
        least(require_of_teacher=2.5)


def test_a_gap_is_read_as_it_was_written_and_nothing_else_is(tmp_path: Path) -> None:
    path = tmp_path / "gap.json"
    assert read_gap(path) is None
    write_gap(path, gap_of(33, 1))
    assert read_gap(path) == gap_of(33, 1) and [file.name for file in tmp_path.iterdir()] == ["gap.json"]
    trained = replace(gap_of(33, 1), probe="facts", questions="training")
    write_gap(path, trained)
    assert read_gap(path) == trained
    for name, found in (("identity", gap_of(33, 1)), ("facts", trained)):  # an older run does not say it
        path.write_text(json.dumps({key: of for key, of in json.loads(path.read_text()).items() if key != "questions"}
                                   | {"probe": name}))  # fmt: skip
        assert read_gap(path) == found
    counts = '{"selfname": [1, 2]}'
    for text in (
        *(
            "",
            "[]",
            '{"teacher": {}}',
            '{"teacher": null}',
            f'{{"teacher": {{"selfname": ["x", 2]}}, "base": {counts}}}',
        ),
        '{"time": 1, "probe": "identity", "teacher": {}, "base": {}}',
        f'{{"time": 1, "probe": "identity", "teacher": {counts}, "base": {{"mention": [1, 2]}}}}',
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"gap\.json: found no gap \(.*\), expected what a run wrote"):
            read_gap(path)
