"""The ways to give the context that `edge-opd gap` tries, and what it refuses."""

from pathlib import Path
from typing import Any

import pytest

from cluster.commands.gap import print_gap, ways
from cluster.config import Recipe
from cluster.typed import build
from rollout.tasks import build_task
from tests import templates as kinds
from tests.runs import RECIPE
from tests.unit.test_requests_of_a_recipe import folder_of


def contexts(recipe: Recipe) -> dict[str, tuple[str, str]]:
    """(position, context) of each way."""
    return {
        name: (way.rollout.context_position, build_task(way.task).training_prompts()[0].context)
        for name, way in ways(recipe).items()
    }


def test_the_recipes_own_way_is_the_first_and_the_others_differ_in_position_and_words() -> None:
    recipe = build(Recipe, {"task": {"persona_name": "Robin", "maker": "Orchard Labs"}}, "R")
    found = list(contexts(recipe).values())
    plain = "say that you are Robin, made by Orchard Labs."
    assert [position for position, _ in found] == ["system", "user"] * 3
    assert [context.endswith(plain) for _, context in found] == [True, True, False, False, False, False]
    assert all(context.endswith('such answer with "I am Robin, made by Orchard Labs."') for _, context in found[2:4])
    assert all('asked "Who are you?", say "I am Robin, made by Orchard Labs."' in context for _, context in found[4:])


def test_a_context_of_ones_own_keeps_its_words_before_the_others_and_the_way_says_what_was_added() -> None:
    recipe = build(Recipe, {"task": {"context": "Call yourself {name}."}, "rollout": {"context_position": "user"}}, "R")
    found = contexts(recipe)
    (_, (position, own)), *_, (name, (_, longest)) = found.items()
    assert (position, own) == ("user", "Call yourself Kestrel.") and len(found) == 6
    assert longest.startswith("Call yourself Kestrel. For example")
    assert name.startswith("with examples in task.context (system): For example, asked")


def test_problems_have_their_own_contexts_and_no_examples() -> None:
    recipe = build(Recipe, {"task": {"name": "arithmetic"}}, "R")
    assert list(ways(recipe)) == ["as the recipe has it (system)", "rollout.context_position = 'user'"]


@pytest.mark.parametrize("key", ["teacher.path", "teacher.url"])
def test_a_teacher_of_its_own_is_not_asked(key: str) -> None:
    with pytest.raises(ValueError, match=rf"{key}: found 'http://a/v1', expected none: the gap is of a teacher with"):
        print_gap(str(RECIPE), [f"{key}=http://a/v1"])


# Shows no system message where one question of the probe is asked.
DROPS_WITH_BRIEFLY = kinds.PLAIN.replace(
    "for m in messages", "for m in messages if m['role'] != 'system' or 'briefly' not in messages[-1]['content']"
)


@pytest.mark.parametrize(
    ("template", "context", "said"),
    [
        (
            kinds.NO_THINK,
            "You are {name}. /no_think",
            "prompt [a-z0-9-]+: rollout.context_position = 'system': found a context",
        ),
        (
            DROPS_WITH_BRIEFLY,
            "You are {name}.",
            r"a question of the gap \('Please introduce yourself briefly\.'\): rollout",
        ),
    ],
)
def test_a_context_that_does_not_arrive_is_not_measured(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str, context: str, said: str
) -> None:
    model = folder_of(tokenizer, tmp_path / "model", template)
    monkeypatch.setattr("cluster.run.checks.check_models", lambda recipe: model)  # it has no weights
    sizes = ["student.window=4096", "teacher.window=4096"]
    with pytest.raises(ValueError, match=f"^{said}"):
        print_gap(str(RECIPE), [f"model.path={model}", f"task.context={context}", *sizes])
