r"""The verifier: which answer counts, which does not, and that no answer can hold up whoever asks."""

import pytest

from rollout.tasks.boxed import fault_of_gold, is_correct, is_plain_number, last_boxed


@pytest.mark.parametrize(
    ("text", "held"),
    [
        ("\\boxed{7}", "7"),
        ("first \\boxed{7}, then \\boxed{8}.", "8"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed {7}", "7"),
        ("\\boxed{\n7\n} so", "\n7\n"),
        ("\\boxed{\\boxed{7}}", "7"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{\\left\\{ x \\right.}", "\\left\\{ x \\right."),
        ("\\boxed{}", ""),
        ("", None),
        ("boxed{7}", None),
        ("The answer is 7.", None),
        ("\\boxed{7} or rather \\boxed{8", None),  # the last one never ends
        ("\\boxed{{7}", None),
    ],
)
def test_the_last_box_is_read_with_its_braces_in_pairs(text: str, held: str | None) -> None:
    assert last_boxed(text) == held


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
