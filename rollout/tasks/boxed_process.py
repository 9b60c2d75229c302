"""The verifier's own process, the only home of math-verify. By path: a JSON list in, a JSON boolean out, a line each.

A question that takes more than CPU_S of processor time ends the process. Processor time, unlike the wall-clock
timeouts of the library, gives the same verdict on a busy machine, and the signal's default action stops big-integer
arithmetic too, which no Python handler interrupts. What it parses was written by a model: it may use no more than
`LIMITS`.
"""

import json
import logging
import os
import re
import resource
import signal
import sys
from collections.abc import Callable

from math_verify import ExprExtractionConfig, LatexExtractionConfig, grader, parse, verify
from sympy import Add, Basic, Eq, Expr, Float, Rational, Symbol, nan, zoo

CPU_S = 2.0
LIMITS = {
    resource.RLIMIT_AS: 4 << 30,
    resource.RLIMIT_FSIZE: 0,  # nothing is written to a file
    resource.RLIMIT_CORE: 0,
    resource.RLIMIT_NOFILE: 32,
    resource.RLIMIT_NPROC: 0,  # it starts nothing, unless its user is root, whom nothing bounds
}
READERS = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())


# E alone is Euler's number to the library: 1.05E-34 reads as 1.05 e - 34. Without a point or a capital it may be that.
E_NOTATION = re.compile(r"([+-]?(?:\d+\.\d*(?=[eE])|\d+(?=E)))[eE]([+-]?\d+)")
SAME_DIGITS = 1e-4  # relative: numbers that are equal agree in four digits at least
NOISE = 1e-12  # of the largest term: decimal fractions are read with 15 digits
POINTS = (0, 1.37)  # for the symbols of an expression

_library_numeric_eq = grader.sympy_numeric_eq


def read(answer: str) -> list[Basic | str]:
    """What the library makes of an answer: an expression and the text it stands for, or less."""
    plain = E_NOTATION.fullmatch(answer)
    answer = rf"{plain[1]} \times 10^{{{plain[2]}}}" if plain else answer
    found: list[Basic | str] = parse(rf"\boxed{{{answer}}}", READERS, parsing_timeout=None)
    return found


def equal(gold: str, answer: str) -> bool:
    """Whether both are the same number, expression or text. The library turns its own errors into False."""
    return bool(verify(read(gold), read(answer), timeout_seconds=None))


def numeric_equal(gold: Basic, answer: Basic, float_rounding: int, numeric_precision: int) -> bool:
    """The library's comparison of numbers, made relative.

    math-verify 0.9.0 rounds to the sixth decimal and drops what is under 1e-15, so that any two small numbers are
    equal to it, and a large one written with a decimal fraction is equal to nothing else.
    """
    if _library_numeric_eq(gold, answer, float_rounding, numeric_precision):
        bare = grader.get_pct_val(gold, gold), grader.get_pct_val(answer, answer)  # 9% is as good as 9 to it
        return _agree(gold, answer) or _agree(*bare)
    return isinstance(gold, Expr) and isinstance(answer, Expr) and _exact(gold) == _exact(answer)


# Sets, tuples, intervals and relations compare their parts through it as well.
grader.sympy_numeric_eq = numeric_equal


def _agree(gold: Basic, answer: Basic) -> bool:
    """Whether both have about the same value, wherever they have one."""
    if not (isinstance(gold, Expr) and isinstance(answer, Expr)):
        return True  # matrices come again, part by part
    symbols = gold.free_symbols | answer.free_symbols
    for point in POINTS if symbols else POINTS[:1]:
        at = dict.fromkeys(symbols, point)
        one, other = (side.doit().subs(at).evalf() for side in (gold, answer))
        if one.is_finite and other.is_finite:
            within = max(SAME_DIGITS * max(abs(one), abs(other)), NOISE * max(_largest(gold, at), _largest(answer, at)))
            if abs(one - other) > within:
                return False
    return True


def _largest(side: Expr, at: dict[Basic, float]) -> Expr:
    """The size of the largest term of a sum, which bounds what rounding leaves of a sum that is zero."""
    return max((abs(term.subs(at).evalf()) for term in Add.make_args(side.doit().expand())), key=float)


def _exact(side: Expr) -> Expr:
    """With each decimal fraction as the ratio that it was written as: 6.022e23 is a whole number."""
    return side.doit().replace(lambda part: isinstance(part, Float), lambda part: Rational(str(part)))


def single(answer: str) -> bool:
    """Whether an answer is one number, fraction or expression; `x = 5` is its right side.

    Sets, tuples, intervals, matrices and inequalities are not, nor are letters alone: a choice or a word.
    """
    if re.fullmatch(r"[\sA-Za-z{}().,$]*", re.sub(r"\\(?:text|math)\w*(?=\s*\{)", "", answer)):
        return False
    readers = [LatexExtractionConfig(boxed_match_priority=0)]
    values = parse(rf"\boxed{{{answer}}}", readers, fallback_mode="no_fallback", parsing_timeout=None)
    if len(values) != 1:
        return False
    named = isinstance(values[0], Eq) and isinstance(values[0].lhs, Symbol)
    value = values[0].rhs if named else values[0]
    return isinstance(value, Expr) and not value.has(zoo, nan)


ACTS: dict[str, Callable[..., bool]] = {"equal": equal, "single": single}


def main() -> None:
    for limit, most in LIMITS.items():
        resource.setrlimit(limit, (most, most))
    logging.disable()
    replies = os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    equal(r"\frac{1}{2}", r"\sqrt{2}")  # so that no first question pays for what the library sets up by its first parse
    print("ready", file=replies, flush=True)
    for standard in (1, 2):  # nothing the library prints may fill a pipe that nobody reads
        os.dup2(nowhere, standard)
    for line in sys.stdin:
        act, *arguments = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, CPU_S)
        print(json.dumps(ACTS[act](*arguments)), file=replies, flush=True)
        signal.setitimer(signal.ITIMER_PROF, 0)


if __name__ == "__main__":
    main()
