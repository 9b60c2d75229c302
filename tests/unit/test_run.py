"""What `edge-opd run` refuses before anything starts."""

from dataclasses import replace

import pytest

from cluster.config import Recipe
from cluster.run.start import check_answers
from evidence.rule import EvidenceConfig
from learner.config import LearnerConfig
from rollout.tasks.base import TaskPrompt

ANSWERED, OPEN = TaskPrompt("p-1", "q", "r", answer="4"), TaskPrompt("p-2", "q", "r")


@pytest.mark.parametrize(
    ("recipe", "key"),
    [
        (replace(Recipe(), learner=LearnerConfig(objective="grpo")), "learner.objective = 'grpo'"),
        (replace(Recipe(), evidence=EvidenceConfig(soft="rlsd_verifier")), "evidence.soft = 'rlsd_verifier'"),
    ],
)
def test_a_verifier_recipe_without_answers_is_refused(recipe: Recipe, key: str) -> None:
    check_answers([ANSWERED], recipe)
    with pytest.raises(
        ValueError, match="prompt p-2: found no answer to verify, expected one for every prompt"
    ) as caught:
        check_answers([ANSWERED, OPEN], recipe)
    assert str(caught.value).endswith(key)


def test_other_recipes_need_none() -> None:
    check_answers([OPEN], Recipe())
