"""Answers to problems, judged by the verifier's process."""

import re
from pathlib import Path

from rollout.tasks import ProbePrompt, TaskConfig, build_task
from rollout.tasks.problems import NUM_WRONG
from tests.unit.test_problems import PROBES, ROWS, numbers, write


def test_reward_and_flags_follow_the_last_box(tmp_path: Path) -> None:
    probe_file = write(tmp_path / "probe.jsonl", PROBES)
    rows = write(tmp_path / "rows.jsonl", [ROWS[2] | {"answer": "4"}, ROWS[3]])
    task = build_task(TaskConfig(name="math", prompts_file=rows, probe_file=probe_file))
    known, unknown = task.training_prompts()
    assert task.reward(known, "2 + 2 is \\boxed{4}.") == 1.0
    assert task.reward(known, "\\boxed{4}, no, \\boxed{5}") == 0.0
    assert task.reward(known, "It is 4.") == 0.0
    assert task.reward(unknown, "\\boxed{6}") is None
    half = task.probe_prompts()[1]
    assert task.flags(half, "\\boxed{0.5}") == {"correct": True}
    assert task.flags(half, "\\boxed{2}") == {"correct": False}


def test_arithmetic_solutions_are_right_and_one_line_of_a_problem_is_wrong() -> None:
    task = build_task(TaskConfig(name="arithmetic", num_problems=200))
    firsts = []
    for prompt in task.training_prompts():
        pair, shown = numbers(prompt.question)
        total = sum(pair) * (3 - len(pair))  # a pair of equal numbers is one number here
        assert prompt.answer == str(total)
        assert shown.count(total) == 1 and abs(sum(shown) - 2 * total) in (1, 2, 10)
        assert prompt.context.count(f"= \\boxed{{{total}}}") == 2
        steps = [tuple(map(int, step)) for step in re.findall(r"(\d+) \+ (\d+) = (\d+)", prompt.context)]
        assert (
            len(steps) == 3 and all(a + b == c for a, b, c in steps) and steps[-1] == (steps[0][2], steps[1][2], total)
        )
        assert task.reward(prompt, prompt.context) == 1.0
        assert all(task.reward(prompt, f"\\boxed{{{wrong}}}") == 0.0 for wrong in shown if wrong != total)
        assert len(prompt.wrong_contexts) == NUM_WRONG and prompt.context not in prompt.wrong_contexts
        firsts.append(shown[0] == total)
    assert 60 < sum(firsts) < 140, "where the right line stands gives nothing away"


def test_an_answer_that_is_not_worked_out_earns_nothing() -> None:
    task = build_task(TaskConfig(name="arithmetic"))
    probe = task.probe_prompts()[0]
    a, b = re.findall(r"\d+", probe.question)[:2]
    assert probe == ProbePrompt("math", probe.question, str(int(a) + int(b)))
    assert task.flags(probe, f"\\boxed{{{a} + {b}}}") == {"correct": False}
    assert task.flags(probe, f"\\boxed{{ {probe.answer}. }}") == {"correct": True}
