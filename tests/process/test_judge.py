"""The verifier's processes: how answers are judged there, and that no answer can hold up whoever asks."""

import asyncio
import os
import resource
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from evidence.rule import EvidenceConfig
from rollout.config import RolloutConfig
from rollout.tasks import boxed
from rollout.tasks.boxed import fault_of_gold, is_correct, is_plain_number, is_single_expression, is_worked_out
from rollout.tasks.boxed_pool import INHERITED, Judges, Verdicts
from rollout.worker import RolloutWorker

LIMITS = {resource.RLIMIT_AS: 4 << 30, resource.RLIMIT_FSIZE: 0, resource.RLIMIT_CORE: 0, resource.RLIMIT_NPROC: 0}


@pytest.mark.parametrize(
    ("gold", "answer", "correct"),
    [
        ("7", "7", True),
        ("7", "7.0", True),
        ("7", "7.", True),
        ("7", "07", True),
        ("70", "070", True),
        ("1234", "1,234", True),
        ("7", "x = 7", True),
        ("7", "7 \\text{ cm}", True),
        ("\\frac{1}{2}", "1/2", True),
        ("0.5", "\\dfrac12", True),
        ("1/3", "\\frac{2}{6}", True),
        ("x^2 - 1", "(x-1)(x+1)", True),
        ("\\frac{\\sqrt{2}}{2}", "\\frac{1}{\\sqrt{2}}", True),
        ("\\text{even}", "\\text{even}", True),
        ("7", "8", False),
        ("7", "-7", False),
        ("7", "77", False),
        ("1/3", "0.33", False),
        ("7", "7, 8", False),
        ("x + 1", "x - 1", False),
        ("7", "seven", False),
        ("7", "", False),
        ("7", " ", False),
        ("7", "\\frac{", False),
        ("7", "}{", False),
        ("7", "\\\\ \x00 ?!", False),
        ("7", "7" + " " * 300 + "7", False),
        ("7", "7" * 300, False),
    ],
)
def test_an_answer_is_compared_as_mathematics(gold: str, answer: str, correct: bool) -> None:
    assert is_correct(gold, f"Well, \\boxed{{1}} no: $\\boxed{{{answer}}}$.") is correct


def test_no_box_is_wrong_even_beside_the_right_number() -> None:
    assert not is_correct("7", "The answer is 7.")
    assert not is_correct("7", "")


@pytest.mark.parametrize(
    ("answer", "plain"), [("7", True), ("-7", False), ("3 + 4", False), ("7.0", False), ("\\frac{14}{2}", False)]
)
def test_a_plain_number_is_worked_out(answer: str, plain: bool) -> None:
    assert is_plain_number("7", f"\\boxed{{{answer}}}") is plain
    assert not is_plain_number("7", "7")


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        ("7", "3 + 4", False),
        ("7", "10 - 3", False),
        ("7", "\\frac{14}{2}", False),
        ("7", "14/2", False),
        ("12", "3 \\times 4", False),
        ("8", "2^3", False),
        ("300", "3 \\times 10^2", False),
        ("0.5", "\\frac{2}{4}", False),
        ("1/3", "1 - 2/3", False),
        ("7", "7", True),
        ("7", "7.0", True),
        ("7", "3 + 4 = 7", True),
        ("7", "x = 7", True),
        ("7", "7 \\text{ cm}", True),
        ("1234", "1,234", True),
        ("-7", "-7", True),
        ("50", "50\\%", True),
        ("50\\%", "0.5", True),
        ("0.5", "\\frac{1}{2}", True),
        ("\\frac{1}{2}", "0.5", True),
        ("\\frac{7}{2}", "3.5", True),
        ("6.02 \\times 10^{23}", "6.02e23", True),
        ("7", "8", False),
        ("7", "", False),
        ("7", "7x/x", False),
        ("7", "7 \\text{ km/h}", True),
        # each number of several
        ("(1,2)", "(2-1,2)", False),
        ("(1,2)", "(1,\\frac{4}{2})", False),
        ("2, 3", "1+1, 3", False),
        ("[1,7]", "[1,3+4]", False),
        ("\\{1,7\\}", "\\{3+4,1\\}", False),
        ("\\{7\\}", "\\{3+4\\}", False),
        ("(1,1)", "(1,2-1)", False),
        ("(2,300)", "(2,3\\times10^2)", False),
        ("(1,\\pi)", "(3-2,\\pi)", False),
        ("\\begin{pmatrix}1\\\\7\\end{pmatrix}", "\\begin{pmatrix}1\\\\3+4\\end{pmatrix}", False),
        ("\\begin{pmatrix}1\\\\7\\end{pmatrix}", "\\begin{bmatrix}1\\\\7\\end{bmatrix}", True),
        ("(1,2)", "(1, 2)", True),
        ("(1,2)", "\\left(1,\\,2\\right)", True),
        ("(1,2)", "(x, y) = (1, 2)", True),
        ("(1,2)", "(2, 1)", False),
        ("2, 3", "3, 2", True),
        ("2, 3", "x = 2, x = 3", True),
        ("2, 3", "2 \\text{ and } 3", True),
        ("\\{1,2\\}", "\\{2,1\\}", True),
        ("\\{1,2\\}", "1, 2", True),
        ("(1,\\frac{1}{2})", "(1, 0.5)", True),
        ("(\\frac{1}{2},1)", "(\\frac{2}{4},1)", False),
        ("(1,\\sqrt{12})", "(1, 2\\sqrt{3})", True),
        ("[0, \\infty)", "[0,\\infty)", True),
        ("x > 3", "(3, \\infty)", True),
        ("(1,2)\\cup(3,4)", "(1,2) \\cup (3,4)", True),
        ("(1,2)\\cup(3,4)", "(1,2) \\cup (3,2+2)", False),
        # no number: as it is compared elsewhere, where its numbers are worked out
        ("3\\pi", "(2+1)\\pi", False),
        ("3\\pi", "\\pi + 2\\pi", False),
        ("3\\pi", "\\frac{6}{2}\\pi", False),
        ("6\\pi", "2\\pi \\cdot 3", False),
        ("\\sqrt{3}", "\\sqrt{1+2}", False),
        ("2+\\sqrt{2}", "1+\\sqrt{2}+1", False),
        ("(1,3\\pi)", "(1,(2+1)\\pi)", False),
        ("(2+1)\\pi", "3\\pi", True),
        ("(2+1)\\pi", "(2+1)\\pi", True),
        ("3\\pi", "3\\pi", True),
        ("\\frac{3}{2}\\pi", "\\frac{3\\pi}{2}", True),
        ("\\frac{3}{2}\\pi", "1.5\\pi", True),
        ("2\\sqrt{3}", "2\\sqrt{3}", True),
        ("1+\\sqrt{2}", "\\sqrt{2}+1", True),
        ("x^2+2x+1", "(x+1)^2", True),
        ("12\\pi", "3*4\\pi", False),
        ("12x", "3 \\cdot 4x", False),
        ("12\\pi", "12\\pi", True),
        ("9\\pi", "3^2 \\cdot \\pi", True),
        ("3\\sqrt{5}", "\\sqrt{5} \\cdot 3", True),
        ("\\pm 2", "2, -2", True),
        ("2, -2", "\\pm 2", True),
        ("2\\sqrt{3}", "\\sqrt{12}", True),
        ("x^2 - 1", "(x-1)(x+1)", True),
        ("\\text{even}", "\\text{even}", True),
    ],
)
def test_a_gold_number_is_worked_out(gold: str, answer: str, right: bool) -> None:
    assert is_worked_out(gold, f"\\boxed{{{answer}}}") is right


@pytest.mark.parametrize(
    ("answer", "single"),
    [
        ("42", True),
        ("-3", True),
        ("0.25", True),
        ("\\frac{3}{4}", True),
        ("x^2 + 1", True),
        ("2\\sqrt{3}", True),
        ("3\\pi", True),
        ("12 \\text{ cm}", True),
        ("50\\%", True),
        ("A", False),
        ("\\text{(C)}", False),
        ("\\text{even}", False),
        ("Monday", False),
        ("1, 2", False),
        ("(1, 2)", False),
        ("\\{1, 2\\}", False),
        ("x = 3", True),
        ("x > 3", False),
        ("[0, 1]", False),
        ("", False),
    ],
)
def test_one_number_fraction_or_expression_is_told_from_the_rest(answer: str, single: bool) -> None:
    assert is_single_expression(answer) is single


def test_answers_that_take_for_ever_are_wrong_and_hold_up_nobody() -> None:
    """Neither the event loop of whoever asks nor an answer that is judged after them."""
    costly = ["9^{9^9}", "10^{10^{10}}", "99999999!", "\\binom{10^6}{5 \\cdot 10^5}"]
    is_asked, has_turned = threading.Event(), threading.Event()

    def reward(text: str) -> float:
        is_asked.set()
        return float(has_turned.wait(60) and is_correct("7", f"\\boxed{{{text}}}"))

    worker = RolloutWorker(
        RolloutConfig(), EvidenceConfig(), None, None, None,  # type: ignore[arg-type]
        reward=lambda text: lambda: reward(text), verdicts=boxed.verdicts,
    )  # fmt: skip
    before = boxed.verdicts()

    async def drive() -> Any:
        answers = asyncio.create_task(worker.verify([*costly, "7", "7"]))  # type: ignore[list-item]
        while not is_asked.is_set():
            await asyncio.sleep(0.01)
        has_turned.set()  # by the loop, while an answer is judged
        return await answers

    assert asyncio.run(drive()) == (0.0, 0.0, 0.0, 0.0, 1.0, 1.0)
    told = boxed.verdicts() - before
    assert (told.costly, told.judged + told.repeated, told.lost) == (4, 2, 0)
    assert not is_correct("7", "\\boxed{9^{9^9}}")
    assert boxed.verdicts() - before == replace(told, repeated=told.repeated + 1)


def test_it_judges_off_the_main_thread_and_on_an_event_loop() -> None:
    found: list[bool] = []

    async def judge() -> None:
        found.append(is_correct("1/2", "\\boxed{0.5}"))

    threads = [threading.Thread(target=lambda: asyncio.run(judge())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 4


def running() -> set[psutil.Process]:
    """The verifier's processes that this one has now."""
    return {child for child in psutil.Process().children() if "boxed_process.py" in " ".join(child.cmdline())}


def process(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", f"import sys\nprint('ready', flush=True)\n{code}")


def test_a_process_that_never_answers_is_given_up() -> None:
    judges = Judges(1, process("import time\ntime.sleep(60)"), deadline_s=0.2)
    assert not judges.ask("equal", "7", "7")
    assert judges.verdicts() == Verdicts(lost=1)
    judges.close()


def test_a_question_that_processes_die_of_is_wrong_and_the_next_one_is_judged() -> None:
    code = "for line in sys.stdin:\n    if 'die' in line: sys.exit(3)\n    print('true', flush=True)"
    judges = Judges(2, process(code))
    assert [judges.ask(word) for word in ("live", "die", "on", "live")] == [True, False, True, True]
    assert judges.verdicts() == Verdicts(judged=2, repeated=1, lost=1)
    judges.close()
    judges.close()
    assert judges.ask("again")
    judges.close()


def test_an_answer_is_right_again_after_the_death_of_a_process() -> None:
    """Which dies through no fault of the answer's."""
    judges, others = Judges(1), running()
    for form in ("7", "7.0", "07"):
        assert judges.ask("equal", "7", form) and judges.ask("equal", "7", form)
        for own in running() - others:
            own.kill()
    assert judges.verdicts() == Verdicts(judged=3, repeated=3)
    judges.close()


def test_a_question_is_asked_again_when_its_process_dies(tmp_path: Path) -> None:
    died = str(tmp_path / "died")
    code = (
        f"import os, signal\nfor line in sys.stdin:\n    if not os.path.exists({died!r}):\n"
        f"        open({died!r}, 'w').close()\n        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    print('true', flush=True)"
    )
    judges = Judges(1, process(code))
    assert judges.ask("equal", "7", "7") and judges.verdicts() == Verdicts(judged=1)
    judges.close()


def test_the_process_that_parses_has_no_key_and_little_else(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "RAY_AUTH_TOKEN", "AWS_SECRET_ACCESS_KEY", "HOME", "ANYTHING"):
        monkeypatch.setenv(name, "planted")
    judges, others = Judges(1), running()
    assert judges.ask("equal", "7", "7")
    (own,) = running() - others
    assert set(own.environ()) <= {*INHERITED, "LC_CTYPE"} and "planted" not in own.environ().values()
    assert {limit: own.rlimit(limit)[1] for limit in LIMITS} == LIMITS
    descriptors = {os.readlink(path).partition(":")[0] for path in Path(f"/proc/{own.pid}/fd").iterdir()}
    assert descriptors == {"pipe", os.devnull}
    judges.close()


def test_a_process_that_does_not_start_is_an_error_and_not_a_wrong_answer() -> None:
    judges = Judges(1, (sys.executable, "-c", "import no_such_library"))
    with pytest.raises(RuntimeError, match=r"^verifier: its process did not start: .*no_such_library"):
        judges.ask("equal", "7", "7")


@pytest.mark.parametrize(
    ("gold", "answer", "correct"),
    [
        # small: the library rounds at the sixth decimal, and drops what is under 1e-15
        ("6.626\\times10^{-34}", "1.05\\times10^{-34}", False),
        ("6.626\\times10^{-34}", "6.626 \\cdot 10^{-34}", True),
        ("6.626\\times10^{-34}", "-6.626\\times10^{-34}", False),
        ("1.6\\times10^{-19}", "1.602\\times10^{-19}", False),
        ("1.05E-34", "6.6E-34", False),
        ("1.05E-34", "1.05\\times 10^{-34}", True),
        ("0.0000000001", "0.0000000002", False),
        ("0.00000001", "10^{-8}", True),
        ("\\frac{1}{10^{20}}", "\\frac{1}{10^{21}}", False),
        ("e^{-50}", "e^{-60}", False),
        ("2^{-40}", "9.094947\\times10^{-13}", True),
        ("0.0", "10^{-7}", False),
        ("1/97", "0.010309", True),
        ("1/9973", "0.0001", False),
        # in a part of something
        ("\\{10^{-20}\\}", "\\{2\\cdot 10^{-20}\\}", False),
        ("(10^{-20}, 1)", "(2\\cdot 10^{-20}, 1)", False),
        ("[10^{-20}, 1]", "[10^{-21}, 1]", False),
        ("[10^{-20}, 1]", "[\\frac{1}{10^{20}}, 1.0]", True),
        ("x = 10^{-20}", "10^{-21}", False),
        ("x < 10^{-20}", "x < 10^{-21}", False),
        ("x - 10^{-20}", "x - 10^{-21}", False),
        ("(x-1)(x+0.1)", "x^2 - 0.9x - 0.1", True),  # zero at 1, but for rounding
        # large: one with a decimal fraction was equal to nothing else
        ("602200000000000000000000", "6.022\\times 10^{23}", True),
        ("1.5\\times10^{30}", "15\\times 10^{29}", True),
        ("1.5\\times10^{30}", "1.6\\times10^{30}", False),
        ("10^{30}", "10^{30} + 1", False),
        ("123456789012345678901234567890", "123456789012345678901234567891", False),
        # fractions, percent, zero
        ("50\\%", "0.5", True),
        ("50\\%", "50", True),
        ("0.505", "50.5\\%", True),
        ("-0.0", "0", True),
        ("-\\frac{0}{5}", "0", True),
        ("\\frac{-1}{2}", "-0.5", True),
    ],
)
def test_numbers_are_compared_by_their_digits_and_not_by_decimals(gold: str, answer: str, correct: bool) -> None:
    assert is_correct(gold, f"\\boxed{{{answer}}}") is correct
    assert is_correct(answer, f"\\boxed{{{gold}}}") is correct
    assert is_correct(gold, f"\\boxed{{{gold}}}")


@pytest.mark.parametrize(
    ("gold", "fault"),
    [
        ("7" * 800, "800 characters, expected at most 256"),
        ("The answer is 4", "a sentence, expected what it says alone"),
        ("It is 4.", "a sentence"),
        ("\\text{There are } 12 \\text{ ways}", "a sentence"),
        ("Multiply both sides by two then add three to reach ten", "a sentence"),
        ("{4", "braces that do not pair"),
        (r"\boxed{4}", r"a \boxed{} of its own, expected what it holds"),
        ("4}", "braces that do not pair"),
        ("4\\", "braces that do not pair or a \\ at its end"),
        (".", "nothing in it"),
        ("...", "nothing in it"),
        ("?", "nothing in it"),
        ("\\text{ }", "nothing in it"),
    ],
)
def test_a_gold_answer_that_nothing_can_equal_is_told(gold: str, fault: str) -> None:
    assert (fault_of_gold(gold) or "").startswith(fault)


@pytest.mark.parametrize(
    "gold",
    [
        *("4", "4.", " 4 . ", "-4", "x = 5.", "0.25", "\\frac{1}{2}", "\\infty", "∞", "½", "四", "Monday"),
        *("no solution", "no real solutions exist", "does not exist", "cannot be determined"),
        *("\\text{even}", "\\text{(A)}", "12 cm"),
        *("\\{1, 2\\}", "(1, 2]", "x^2 + 1", "\\begin{pmatrix}1\\\\2\\end{pmatrix}", "$4$", "4!", "7" * 256),
    ],
)
def test_any_other_gold_answer_equals_itself_in_a_box(gold: str) -> None:
    assert fault_of_gold(gold) is None
    assert is_correct(gold, f"So it is \\boxed{{{gold}}}.")


def test_a_dot_at_the_end_of_a_gold_answer_is_none_of_it() -> None:
    assert is_correct("4.", "\\boxed{4}")
    assert is_plain_number("4.", "\\boxed{4}")
