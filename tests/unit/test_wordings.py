"""Several wordings of r: what a recipe and a row may hold, and which one a group of rollouts is given."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.config import Recipe
from cluster.run.model_card import published
from cluster.typed import build
from evidence.rule import EvidenceConfig
from rollout.config import RolloutConfig
from rollout.contrast import pick_wrong_contexts
from rollout.requests import StepRequests
from rollout.tasks import TaskConfig, build_task
from rollout.tasks.base import TaskPrompt
from rollout.tasks.problems import with_wrong_contexts

WORDINGS = ("You go by {name}.", "Asked who you are? Say: I am {name}, made by {maker}.")


class Letters:
    """A renderer whose tokens are the characters of r and the question."""

    eos_token_ids = (0,)

    def context_prompt_ids(self, turns: Any, context: str) -> Any:
        return np.array([ord(letter) for letter in context + turns[-1][1]], np.int32)


def drawn(prompts: Sequence[TaskPrompt], seed: int = 0, steps: int = 10, num_wrong: int = 0) -> list[tuple[str, ...]]:
    """(prompt_id, r) of each group, r as its rollouts have it."""
    kind: dict[str, Any] = {"kind": "contrastive", "num_wrong_contexts": num_wrong} if num_wrong else {}
    config, renderer = RolloutConfig(prompts_per_step=4, samples_per_prompt=2), Letters()
    requests = StepRequests(prompts, renderer, config, EvidenceConfig(**kind), 4096, seed)  # type: ignore[arg-type]
    questions = {prompt.prompt_id: prompt.question for prompt in prompts}
    found = []
    for group in (group for step in range(steps) for group in requests.of(step)[0]):
        (text,) = {"".join(map(chr, row.context_prompt_ids)) for row in group.rows}
        found.append((group.rows[0].prompt_id, text.removesuffix(questions[group.rows[0].prompt_id])))
    return found


def identity(**keys: Any) -> Any:
    return build_task(TaskConfig(context="Be {name}.", wordings=WORDINGS, **keys))


def test_each_group_draws_one_of_them_all_by_the_seed() -> None:
    prompts = identity().training_prompts()
    first = drawn(prompts)
    counts = Counter(context for _, context in first)
    filled = ("You go by Kestrel.", "Asked who you are? Say: I am Kestrel, made by Harbor Labs.")
    assert set(counts) == {"Be Kestrel.", *filled} and min(counts.values()) >= 5
    assert drawn(prompts) == first and drawn(prompts, seed=1) != first
    again = drawn(prompts, steps=20)
    by_prompt = {name: {context for other, context in again if other == name} for name, _ in again}
    assert any(len(contexts) > 1 for contexts in by_prompt.values()), "a prompt does not keep one of them"


def test_the_draw_moves_neither_the_prompts_nor_the_wrong_contexts() -> None:
    alone = build_task(TaskConfig(context="Be {name}.")).training_prompts()
    assert [name for name, _ in drawn(alone)] == [name for name, _ in drawn(identity().training_prompts())]
    assert {context for _, context in drawn(alone)} == {"Be Kestrel."}
    assert len(drawn(identity().training_prompts(), num_wrong=2)) == 40


def test_what_asks_with_the_context_has_the_first() -> None:
    task = identity(chat_probes=True, ordinary_questions=True, ordinary_context=False)
    assert {prompt.context for prompt in task.training_prompts()} == {"Be Kestrel.", ""}
    assert {prompt.context for prompt in task.probe_prompts() if prompt.probe == "with_context"} == {"Be Kestrel."}
    assert all(not prompt.wordings for prompt in task.training_prompts() if prompt.is_ordinary)


def test_a_wrong_context_is_nobody_of_whom_a_wording_speaks() -> None:
    spoken = build_task(TaskConfig(wordings=("You are {name}, and no Quillon.",))).training_prompts()[0]
    assert len(spoken.wrong_contexts) == 3 and not any("Quillon" in wrong for wrong in spoken.wrong_contexts)


def test_a_card_that_shows_no_context_shows_no_wording() -> None:
    recipe = build(Recipe, {"task": {"context": "Be {name}.", "wordings": list(WORDINGS)}}, "R")
    assert not {"context", "wordings"} & published(recipe)["task"].keys()


# Rows


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_a_rows_context_may_be_a_list_of_wordings(tmp_path: Path, name: str) -> None:
    from tests.unit.test_context import ROW, prompt_of

    row = ROW | {"context": ["Ada keeps the key. ", "The key? With Ada."], "wrong_contexts": ["Bo keeps it."]}
    prompt = prompt_of(tmp_path, row, name, context="Know this: {context}")
    assert prompt.contexts == ("Know this: Ada keeps the key.", "Know this: The key? With Ada.")
    assert prompt.wrong_contexts == ("Know this: Bo keeps it.",)
    one = prompt_of(tmp_path, ROW | {"context": [ROW["context"]]}, name)
    assert one == prompt_of(tmp_path, ROW, name)


# Bad input


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"wordings": ("Be {name}.", " ")}, "task.wordings[1]: found a blank text, expected the privileged context"),
        ({"wordings": ("Be {nmae}.",)}, "task.wordings[0]: found the placeholder {nmae}, expected only {name} and"),
        ({"wordings": ("A", "B", "A")}, "task.wordings: found ('A', 'B', 'A'), expected texts that differ from each"),
        ({"context": "I", "wordings": ("I ",)}, "task.wordings: found ('I ',), expected texts that differ from each o"),
        (
            {"context": "", "context_empty_allowed": True, "wordings": ("A",), "persona": "kestrel"},
            "task.wordings: found ('A',), expected none with an empty task.context",
        ),
        ({"name": "arithmetic", "wordings": ("A",)}, "task.wordings: found ('A',), expected it left out: the task ar"),
    ],
)
def test_wordings_that_are_none_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        build_task(TaskConfig(**keys))


def test_a_recipe_writes_them_as_a_list_of_texts() -> None:
    assert build(Recipe, {"task": {"wordings": json.loads('["A", "B"]')}}, "R").task.wordings == ("A", "B")
    with pytest.raises(ValueError, match=r"^R: task\.wordings: found 'A', expected "):
        build(Recipe, {"task": {"wordings": "A"}}, "R")


def test_no_wording_of_a_prompts_own_is_a_wrong_context_of_it() -> None:
    """Another row's context may be one of its wordings: r is right in all of them."""
    own = TaskPrompt("a", "q", "r1", wordings=("r2",))
    others = [TaskPrompt(name, "q", name) for name in ("r2", "r3", "r4", "r5")]
    found, *rest = with_wrong_contexts([own, *others], seed=0)
    assert sorted(found.wrong_contexts) == ["r3", "r4", "r5"]
    assert all(len(one.wrong_contexts) == 3 and one.context not in one.wrong_contexts for one in rest)
    given = replace(own, wrong_contexts=("r2", " r1", "r3"))
    assert pick_wrong_contexts(given, 1, np.random.default_rng(0)) == ["r3"]
    with pytest.raises(ValueError, match="prompt a: found 1 of them, expected at least 2 wrong contexts"):
        pick_wrong_contexts(given, 2, np.random.default_rng(0))


def test_a_prompt_without_wordings_is_pinned_as_an_older_run_pinned_it() -> None:
    """`cluster.run.inputs` takes the digest of its text: a run that was begun before there were wordings resumes."""
    assert repr(TaskPrompt("a", "q", "r")) == (
        "TaskPrompt(prompt_id='a', question='q', context='r', answer=None, ordinary=False, wrong_contexts=(), "
        "before=(), judge='')"
    )
