"""A number that is written out is told from one that is still to be worked out, by the text alone."""

import time

import pytest

from rollout.tasks.boxed_numbers import Written, parts, written
from rollout.tasks.boxed_terms import is_unfinished

WHOLE = [
    *("7", "-7", "+7", "\u22127", "07", "7.", "7.0", "7.00", "1,234", "1{,}234,567", "1234567", "$7$", "\\$7",
      "(7)", "(-7)"),
    *("7 cm", "7\\text{ cm}", "7 \\text{ m/s}^2", "7\\,\\mathrm{m}", "7^\\circ", "7°", "50\\%", "50%",
      "7 square units"),
    *("x = 7", "x=7", "3 + 4 = 7", "7x/x = 7", "\\text{area} = 7", "\\mathbf{7}", "\\text{7}", "\\left(7\\right)",
      "\\boxed{7}"),
]  # fmt: skip
OTHER = [
    *("0.5", ".5", "-0.25", "3.14", "1,234.5", "12.50", "12.5%", "\\frac{1}{2}", "\\dfrac12", "\\frac12",
      "\\tfrac{3}{4}"),
    *("1/2", "-\\frac{1}{2}", "\\frac{-1}{2}", "22/7", "3\\frac{1}{2}", "\\frac{1}{2} \\text{ cm}", "x = \\frac{1}{2}"),
    *("6.02\\times10^{23}", "6.02 \\times 10^{-34}", "10^{-8}", "10^9", "6.02e23", "1.05E-34", "5 \\cdot 10^6"),
]  # fmt: skip
NEITHER = [
    *("", " ", "3 + 4", "3+4", "10 - 3", "3 \\times 4", "3\\cdot4", "3*4", "14/2", "\\frac{14}{2}",
      "\\frac{2}{6}", "7/1"),
    *("2^3", "2^{10}", "\\sqrt{49}", "4!", "\\binom{4}{2}", "\\pi", "2\\pi", "--7", "7 = 3 + 4", "7, 8", "1, 234"),
    *("{7, 8}", "(3, 4)", "(3)(4)", "x + 1", "seven", "\\frac{1}{0}", "12 \\times 10^2", "3 times 4",
      "7 or 8", "\\sum 7"),
    *("\\frac{1}{2} + \\frac{1}{3}", "1/2/3", "12:30", "101_2", "e^{2}", "\\left\\lfloor 7.5 \\right\\rfloor",
      "7 - 0 cm", "7x/x", "7 ab/ab"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("answers", "how"),
    [(WHOLE, Written.WHOLE), (OTHER, Written.OTHER), (NEITHER, None)],
    ids=["whole", "other", "neither"],
)
def test_how_a_number_is_written(answers: list[str], how: Written | None) -> None:
    found = {answer: written(answer) for answer in answers}
    assert found == dict.fromkeys(answers, how)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        *(
            (text, [Written.WHOLE, Written.WHOLE])
            for text in ("(1,2)", "{1,2}", "\\{1, 2\\}", "[1;2)", "1 or 2", "1\\text{ and }2")
        ),
        *((text, [Written.WHOLE, Written.WHOLE]) for text in ("(x, y) = (1, 2)", "x = 1, y = 2", "1 \\leq x < 2")),
        ("{\\frac{1}{2}, 1+1}", [Written.OTHER, None]),
        ("(1{,}234, 5, \\infty)", [Written.WHOLE, Written.WHOLE]),
        ("\\begin{pmatrix}1 & 2-1\\\\\\frac12 & 7\\end{pmatrix}", [Written.WHOLE, None, Written.OTHER, Written.WHOLE]),
        ("(x-1)(x+1)", [None]),
        ("", []),
    ],
)
def test_each_part_of_several_is_told(answer: str, expected: list[Written | None]) -> None:
    assert parts(answer) == expected


UNFINISHED = [
    # numbers that are still to be added
    *("(2+1)\\pi", "\\pi(2+1)", "\\pi \\cdot (2 + 1)", "(5-2)x", "1+\\sqrt{2}+1", "\\sqrt{1+2}", "\\frac{1+2}{4}\\pi",
      "\\left(\\frac{1}{2}+1\\right)\\pi", "(1/2 + 1)x", "x+1+2", "e^{2+1}", "2 \\pm 1", "2 \\mp 1", "((2+1))\\pi",
      "-1-2+\\pi", "x = (2+1)\\pi", "\\{\\pi + 2\\pi\\}", "1+2+\\cdots+n", "(1,(2+1)\\pi)",
      "\\begin{pmatrix}\\pi\\\\(2+1)\\pi\\end{pmatrix}"),
    # terms that differ in their numbers only
    *("\\pi+2\\pi", "2\\sqrt{3} + \\sqrt{3}", "2x-x", "\\frac{3}{2}\\pi - \\frac{1}{2}\\pi", "1+2i+3i",
      "2\\cdot\\pi + \\pi"),
    # multiplied
    *("3*4\\pi", "3 \\cdot 4x", "2.5\\times 2\\pi", "\\sqrt{3*4}", "2\\pi\\cdot 3", "(2)(3)\\pi", "2(3)\\pi",
      "2x\\cdot 3", "\\frac{1}{2}\\cdot 6\\pi", "2\\sqrt{3}\\cdot 3\\sqrt{2}"),
    # divided
    *("\\frac{6}{2}\\pi", "\\frac{6\\pi}{2}", "6\\pi/2", "\\frac{2}{4}x", "\\dfrac{2\\sqrt{3}}{4}", "3/1 \\pi", "6/4 x",
      "\\frac{4}{6\\pi}", "6 \\div 2 \\pi", "2\\sqrt{3}/4", "\\frac{2x}{2y}"),
]  # fmt: skip
FINISHED = [
    *("3\\pi", "\\frac{3}{2}\\pi", "\\frac{3\\pi}{2}", "3\\pi/2", "2\\sqrt{3}", "1+\\sqrt{2}", "\\sqrt{2} - 1",
      "\\sqrt{12}", "\\frac{1+\\sqrt{5}}{2}", "\\frac{-3 \\pm \\sqrt{17}}{4}", "1+2i", "\\frac{1}{\\sqrt{2}}",
      "\\frac{\\sqrt{2}}{2}"),
    *("x^2-1", "(x-1)(x+1)", "(x+1)^2", "x^2+2x+1", "3x^2 - 2x + 1", "2(3+x)", "x^{2*n}", "x^{n+1}", "2 \\cdot 3^n",
      "x^2 \\cdot 3", "3^2 \\cdot \\pi", "2(3)^n", "2^n+3^n", "x^2/3+x^3/5", "a_1+a_2", "a_{1}+a_{2}", "f(1)+f(2)",
      "\\log_2(3)+\\log_2(5)", "\\log_{2}(3)+\\log_{2}(5)",
      "x^-1+1", "\\frac{x}{2}+\\frac{x}{3}", "2\\cdot\\pi", "|x-1|+1", "1\\frac{1}{2}x"),
    *("3\\times 10^{2}\\pi", "2^3 \\cdot 3x", "5\\text{ ft }+6\\text{ in}", "(1, \\pi+1)", "\\{\\pi, 2\\pi\\}",
      "x + y = 3", "\\text{even}", "y = 2x+3", "(-1, 1)\\cup(2, \\pi)", "1{,}234\\pi + 1", "n(n+1)/2",
      "\\frac{n(n+1)}{2}", "", "A+"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("answers", "expected"),
    [(UNFINISHED, True), (FINISHED, False), (WHOLE, False), (OTHER, False)],
    ids=["unfinished", "finished", "whole", "other"],
)
def test_numbers_that_are_still_to_be_worked_out_are_told(answers: list[str], expected: bool) -> None:
    found = {answer: is_unfinished(answer) for answer in answers}
    assert found == dict.fromkeys(answers, expected)


@pytest.mark.parametrize(
    "part",
    [
        "a",
        "a ",
        "\\text{",
        "7",
        "1,234",
        "{",
        "%",
        "=",
        "^\\circ",
        "\\frac{1}{2}",
        "a^2",
        "\\{",
        "and",
        "2*",
        "a/",
        "(",
        "(1",
        "2+",
        "2)",
        "\\frac{2",
        "\\frac{2}",
        "2\\pi/",
    ],
)
def test_no_answer_of_the_longest_kind_takes_long(part: str) -> None:
    began = time.process_time()
    for end in ("", "!", "7", "}"):
        text = (part * 256)[:255] + end
        written(text), parts(text), is_unfinished(text)
    assert time.process_time() - began < 0.5
