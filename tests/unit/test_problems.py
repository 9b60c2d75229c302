"""Problems with worked solutions: the math and arithmetic tasks, their contexts, their verifier's place."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from rollout.tasks import TaskConfig, TaskPrompt, build_task
from rollout.tasks.arithmetic import NUM_PROBES
from rollout.tasks.problems import NUM_WRONG

ROWS = [
    {"prompt_id": f"p{n}", "question": f"What is {n} + {n}?", "solution": f"It is {2 * n}, I \\boxed{{think}}."}
    for n in range(6)
]
PROBES = [{"question": "What is 3 x 7?", "answer": "21"}, {"question": "Half of 1?", "answer": "\\frac{1}{2}"}]


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return str(path)


@pytest.fixture
def probe_file(tmp_path: Path) -> str:
    return write(tmp_path / "probe.jsonl", PROBES)


def math_prompts(tmp_path: Path, probe_file: str, rows: list[Any], **settings: Any) -> list[TaskPrompt]:
    prompts_file = write(tmp_path / "rows.jsonl", rows)
    config = TaskConfig(name="math", prompts_file=prompts_file, probe_file=probe_file, **settings)
    return list(build_task(config).training_prompts())


# math: rows


def test_a_row_becomes_a_question_for_a_boxed_answer_and_a_context_around_its_solution(
    tmp_path: Path, probe_file: str
) -> None:
    (prompt,) = math_prompts(tmp_path, probe_file, [ROWS[1] | {"answer": " 2 "}])
    assert prompt.prompt_id == "p1"
    assert prompt.question.startswith("What is 1 + 1?\n") and "\\boxed{}" in prompt.question
    assert "It is 2, I \\boxed{think}." in prompt.context
    assert "It is 2" not in prompt.question
    assert (prompt.answer, prompt.wrong_contexts) == ("2", ())


@pytest.mark.parametrize(("row", "answer"), [({}, None), ({"answer": None}, None), ({"answer": 42}, "42")])
def test_an_answer_is_optional_and_may_be_a_whole_number(
    tmp_path: Path, probe_file: str, row: dict[str, Any], answer: str | None
) -> None:
    (prompt,) = math_prompts(tmp_path, probe_file, [ROWS[0] | row])
    assert prompt.answer == answer


def test_braces_and_latex_of_a_row_stay_as_they_are(tmp_path: Path, probe_file: str) -> None:
    row = {"prompt_id": "a", "question": "Find {x}: \\frac{1}{{x}}", "solution": "{solution} \\sum_{i}^{n}"}
    (prompt,) = math_prompts(tmp_path, probe_file, [row])
    assert "Find {x}: \\frac{1}{{x}}" in prompt.question
    assert "{solution} \\sum_{i}^{n}" in prompt.context


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{oops}", ", line 2: found no valid JSON"),
        ('{"prompt_id": "b", "prompt_id": "c", "question": "q", "solution": "s"}', ", line 2: found the key 'prompt"),
        (
            {"prompt_id": "a", "question": "Q?"},
            ", line 2: found the keys prompt_id, question, expected a JSON object with the keys prompt_id, question, "
            "solution and maybe answer",
        ),
        (ROWS[1] | {"hint": "h"}, ", line 2: found the keys hint, prompt_id, question, solution, expected"),
        (ROWS[1] | {"solution": " "}, ", line 2: found solution = ' ', expected a text that is not blank"),
        (ROWS[1] | {"answer": ""}, ", line 2: found answer = '', expected a text that is not blank"),
        (ROWS[1] | {"answer": True}, ", line 2: found answer = True, expected a text that is not blank"),
        (ROWS[1] | {"answer": 0.5}, ", line 2: found answer = 0.5, expected a text that is not blank"),
        (ROWS[0], ", line 2: found prompt_id 'p0' again, expected each one once"),
        (
            ROWS[1] | {"answer": "The answer is 4"},
            ", line 2: found answer = 'The answer is 4' (a sentence, expected what it says alone",
        ),
        (
            ROWS[1] | {"answer": "7" * 800},
            f", line 2: found answer = '{'7' * 60}' (800 characters, expected at most 256)",
        ),
    ],
)
def test_a_malformed_row_names_the_file_and_the_line(tmp_path: Path, probe_file: str, row: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(str(tmp_path / 'rows.jsonl') + message)}"):
        math_prompts(tmp_path, probe_file, [ROWS[0], row])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "Q?"}, ", line 2: found the keys question, expected"),
        ({"question": "Q?", "answer": None}, ", line 2: found answer = None, expected a text that is not blank"),
        (
            {"question": "Q?", "answer": "\\frac{1}{2"},
            ", line 2: found answer = '\\\\frac{1}{2' (braces that do not pair or a \\ at its end, expected",
        ),
        (PROBES[0], ", line 2: found a question that was there before, expected one that is only here"),
        ({"question": "What is 4 + 4? ", "answer": "8"}, ", line 2: found a question that was there before"),
    ],
)
def test_a_malformed_or_repeated_probe_names_the_file_and_the_line(tmp_path: Path, row: Any, message: str) -> None:
    """The last row is a training question: the probe would measure memory."""
    path = tmp_path / "probe.jsonl"
    with pytest.raises(ValueError, match=f"^{re.escape(str(path) + message)}"):
        math_prompts(tmp_path, write(path, [PROBES[0], row]), ROWS)


def test_what_is_missing_is_said_by_key(tmp_path: Path, probe_file: str) -> None:
    rows = write(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(ValueError, match=r"^task\.probe_file: found none, expected a JSON lines file of .*question"):
        build_task(TaskConfig(name="math", prompts_file=rows))
    with pytest.raises(ValueError, match=r"^task\.probe_file: found no file at 'no\.jsonl'"):
        build_task(TaskConfig(name="math", probe_file="no.jsonl"))
    task = build_task(TaskConfig(name="math", probe_file=probe_file))
    assert len(task.probe_prompts()) == 2, "a probe needs no training problems"
    with pytest.raises(ValueError, match=r"^task\.prompts_file: found none, expected a JSON lines file"):
        task.training_prompts()
    empty = write(tmp_path / "empty.jsonl", [""])
    for key in ("prompts_file", "probe_file"):
        with pytest.raises(ValueError, match=f"^{re.escape(empty)}: found no rows"):
            build_task(TaskConfig(**{"name": "math", "probe_file": probe_file, key: empty}))


# math: the wrong contexts


def test_wrong_contexts_are_other_rows_contexts_drawn_by_seed(tmp_path: Path, probe_file: str) -> None:
    prompts = math_prompts(tmp_path, probe_file, ROWS)
    contexts = {prompt.context for prompt in prompts}
    for prompt in prompts:
        assert len(set(prompt.wrong_contexts)) == len(prompt.wrong_contexts) == NUM_WRONG
        assert set(prompt.wrong_contexts) <= contexts - {prompt.context}
    assert prompts == math_prompts(tmp_path, probe_file, ROWS)
    assert prompts != math_prompts(tmp_path, probe_file, ROWS, seed=1)
    assert len({prompt.wrong_contexts for prompt in prompts}) > 1


@pytest.mark.parametrize(("num", "offered"), [(1, 0), (2, 1), (3, 2), (4, 3), (5, 3)])
def test_few_rows_offer_few_wrong_contexts(tmp_path: Path, probe_file: str, num: int, offered: int) -> None:
    prompts = math_prompts(tmp_path, probe_file, ROWS[:num])
    assert {len(prompt.wrong_contexts) for prompt in prompts} == {offered}


def test_the_same_solution_is_no_wrong_one(tmp_path: Path, probe_file: str) -> None:
    rows = [ROWS[0], ROWS[0] | {"prompt_id": "again", "question": "Twice 0?"}, ROWS[1]]
    prompts = math_prompts(tmp_path, probe_file, rows)
    assert [len(prompt.wrong_contexts) for prompt in prompts] == [1, 1, 1]
    assert all(prompt.context not in prompt.wrong_contexts for prompt in prompts)


# Reward and flags


# arithmetic


def numbers(question: str) -> tuple[frozenset[int], list[int]]:
    """The pair that a question adds, and what its two lines say the sum is."""
    lines = re.findall(r"^(\d+) \+ (\d+) = \\boxed\{(\d+)\}$", question, re.MULTILINE)
    assert len(lines) == 2 and lines[0][:2] == lines[1][:2]
    return frozenset(map(int, lines[0][:2])), [int(line[2]) for line in lines]


@pytest.mark.parametrize(("num", "largest", "seed"), [(64, 99, 0), (500, 99, 3), (43, 19, 1), (20, 10**6, 2)])
def test_arithmetic_probes_and_training_share_no_pair(num: int, largest: int, seed: int) -> None:
    task = build_task(TaskConfig(name="arithmetic", num_problems=num, largest=largest, seed=seed))
    training = [numbers(prompt.question)[0] for prompt in task.training_prompts()]
    probes = [numbers(probe.question)[0] for probe in task.probe_prompts()]
    assert (len(training), len(probes)) == (num, NUM_PROBES)
    assert len(set(training + probes)) == num + NUM_PROBES, "no pair comes twice, in either order"
    assert all(10 <= min(pair) <= max(pair) <= largest for pair in training + probes)
    assert len({prompt.prompt_id for prompt in task.training_prompts()}) == num


def test_arithmetic_is_a_pure_function_of_its_keys() -> None:
    def questions(**settings: Any) -> list[str]:
        task = build_task(TaskConfig(name="arithmetic", **settings))
        return [prompt.question for prompt in (*task.training_prompts(), *task.probe_prompts())]

    assert questions() == questions()
    assert questions() != questions(seed=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"num_problems": 44, "largest": 19},
            "task.num_problems: found 44, expected at most 43 with task.largest = 19",
        ),
        ({"largest": 9}, "task.num_problems: found 64, expected at most 0 with task.largest = 9"),
        ({"largest": 1}, "task.num_problems: found 64, expected at most 0 with task.largest = 1"),
    ],
)
def test_more_problems_than_there_are_pairs_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        build_task(TaskConfig(name="arithmetic", **settings))


@pytest.mark.parametrize("key", ["num_problems", "largest", "seed"])
def test_a_number_out_of_range_is_refused_by_key(key: str) -> None:
    with pytest.raises(ValueError, match=rf"^task\.{key}: found -1, expected at least"):
        TaskConfig(**{key: -1})
