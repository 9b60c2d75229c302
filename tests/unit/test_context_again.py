"""The questions of rows with their context once more: `task.chat_probes` of the tasks context and facts."""

import json
from pathlib import Path
from typing import Any

import pytest

from rollout.gap import MOST, gap_questions
from rollout.probe import summarise
from rollout.tasks import TaskConfig, build_task

PROBE = {"question": "The key is kept by whom?", "answer": "Ada", "tags": "key"}
ROWS = [
    {"question": "Who keeps the key?", "context": "Ada keeps it.", "answer": "Ada"},
    {"question": "Who keeps the lamp?", "context": "Bo keeps it."},  # no answer to hold a response against
    {"question": "Who keeps the key?", "context": "Ada has kept it.", "answer": "Ada"},
    {"question": "Who keeps the boat?", "context": "Cy keeps it.", "answer": "Cy"},
]


def task_of(tmp_path: Path, rows: list[dict[str, str]], **keys: Any) -> Any:
    files = {"prompts_file": rows, "probe_file": [PROBE]}
    for key, content in files.items():
        (tmp_path / f"{key}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in content))
    paths = {key: str(tmp_path / f"{key}.jsonl") for key, content in files.items() if content}
    return build_task(TaskConfig(name="context", **paths, **keys))


def test_rows_with_an_answer_are_asked_with_their_own_context_again(tmp_path: Path) -> None:
    """A question with two contexts is asked with the first: each has as many answers."""
    plain, task = (task_of(tmp_path, ROWS, chat_probes=asked) for asked in (False, True))
    own, *again = task.probe_prompts()
    assert plain.probe_prompts() == (own,) and plain.rates == ("correct", "correct:key")
    assert task.rates == ("correct", "correct:key", "correct_with_context")
    assert [(probe.probe, probe.question, probe.context) for probe in again] == [
        ("context_again", "Who keeps the key?", "Ada keeps it."),
        ("context_again", "Who keeps the boat?", "Cy keeps it."),
    ]
    answers = [(own, "Ada"), (again[0], "Ada does."), (again[1], "Ada does.")]
    rates = summarise([*answers, *answers], task).rates
    assert {name: (rate.k, rate.n) for name, rate in rates.items()} == {
        "correct": (2, 2), "correct:key": (2, 2), "correct_with_context": (2, 4),
    }  # fmt: skip


def test_one_context_for_all_comes_again_with_the_probes_own_questions(tmp_path: Path) -> None:
    shared = [{"question": row["question"]} for row in ROWS[1:]]
    own, again = task_of(tmp_path, shared, context="Ada keeps all.", chat_probes=True).probe_prompts()
    assert (again.probe, again.context, again.turns) == ("context_again", "Ada keeps all.", own.turns)


def test_without_rows_to_train_on_no_context_comes_again(tmp_path: Path) -> None:
    assert task_of(tmp_path, [], chat_probes=True).rates == ("correct", "correct:key")


@pytest.mark.parametrize("ordinary", [False, True])
def test_facts_come_again(ordinary: bool) -> None:
    task = build_task(TaskConfig(name="facts", chat_probes=True, ordinary_questions=ordinary))
    again = [probe for probe in task.probe_prompts() if probe.context]
    assert len(again) == MOST and task.rates[-1] == "correct_with_context"
    assert all(task.flags(probe, probe.context)["correct"] for probe in again)


def test_a_gap_asks_each_question_once(tmp_path: Path) -> None:
    questions = gap_questions(task_of(tmp_path, ROWS))
    assert [(probe.question, context) for probe, context in questions] == [
        ("Who keeps the key?", "Ada keeps it."),
        ("Who keeps the boat?", "Cy keeps it."),
    ]
