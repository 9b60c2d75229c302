"""The frozen teacher's first score, in the run's folder, over a stand-in for the services."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.config import Recipe
from cluster.fleet.canary import CanaryText
from cluster.run.rundir import RunDir
from cluster.run.teacher_check import TeacherCheck
from evidence.records import Floats, Ids
from tests.fakes import fake_logprobs

PROMPT, TEXT = np.arange(3, dtype=np.int32), np.arange(5, dtype=np.int32)


class Both:
    """Both services, each with a model. Remembers what the teacher was compared with."""

    def __init__(self, teacher: str = "base", learner: str = "base") -> None:
        self.teacher, self.learner = teacher, learner
        self.proved: list[Floats] = []

    async def teacher_scores(self, prompt: Ids, text: Ids) -> Floats:
        return fake_logprobs(prompt, text, self.teacher)

    async def score(self, what: str, prompt: Ids, text: Ids) -> Floats:
        return fake_logprobs(prompt, text, self.learner)

    async def prove_teacher(self, text: CanaryText, tolerance: float) -> None:
        self.proved.append(text.expected)


def check(folder: Path, both: Any, version: int = 0, recipe: Recipe | None = None, text: Ids = TEXT) -> None:
    asyncio.run(TeacherCheck(recipe or Recipe(), RunDir(folder), PROMPT, text).run(both, both, version))


def test_the_first_score_is_kept_and_compared_at_later_starts(tmp_path: Path) -> None:
    check(tmp_path, Both())
    later = Both(teacher="uniform", learner="trained")
    check(tmp_path, later, version=7)
    assert np.array_equal(later.proved[0], fake_logprobs(PROMPT, TEXT, "base"))


def test_a_teacher_without_its_weights_at_the_first_start_is_not_the_learners_base(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="first score of the frozen teacher: its engine differs from the learner"):
        check(tmp_path, Both(teacher="uniform"))
    assert not RunDir(tmp_path).teacher.exists()


@pytest.mark.parametrize("changes", [{"path": "/another/model"}, {"url": "http://host/v1"}], ids=["path", "url"])
def test_another_model_is_not_compared_with_the_learner(tmp_path: Path, changes: dict[str, str]) -> None:
    recipe = Recipe()
    check(tmp_path, Both(teacher="other"), recipe=replace(recipe, teacher=replace(recipe.teacher, **changes)))
    assert RunDir(tmp_path).teacher.exists()


def test_a_teacher_that_follows_has_no_reference(tmp_path: Path) -> None:
    recipe, both = Recipe(), Both()
    check(tmp_path, both, recipe=replace(recipe, teacher=replace(recipe.teacher, kind="live")))
    assert not both.proved and not RunDir(tmp_path).teacher.exists()


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"text_ids": [0, 1, 2, 3, 4], "logprobs": [0.0]}', '{"text_ids": [7], "logprobs": [0.0]}'],
)
def test_a_file_that_is_something_else_is_named(tmp_path: Path, content: str) -> None:
    RunDir(tmp_path).teacher.write_text(content)
    with pytest.raises(ValueError, match=r"teacher\.json: found no score of the frozen teacher"):
        check(tmp_path, Both())


@pytest.mark.parametrize(("every", "due"), [(10, [0, 10, 20]), (0, []), (1, list(range(21)))])
def test_it_is_checked_every_so_many_steps(tmp_path: Path, every: int, due: list[int]) -> None:
    recipe = Recipe()
    recipe = replace(recipe, faults=replace(recipe.faults, teacher_check_every=every))
    found = TeacherCheck(recipe, RunDir(tmp_path), PROMPT, TEXT)
    assert [step for step in range(21) if found.is_due(step)] == due
