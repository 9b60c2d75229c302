"""The verifier's own process, the only home of math-verify. By path: a JSON list in, a JSON boolean out, a line each.

A question that takes more than CPU_S of processor time ends the process. Processor time, unlike the wall-clock
timeouts of the library, gives the same verdict on a busy machine, and the signal's default action stops big-integer
arithmetic too, which no Python handler interrupts.
"""

import json
import logging
import os
import re
import resource
import signal
import sys
from collections.abc import Callable

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
from sympy import Basic, Eq, Expr, Symbol, nan, zoo

CPU_S = 2.0
MEMORY_BYTES = 4 << 30
READERS = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())


def read(answer: str) -> list[Basic | str]:
    """What the library makes of an answer: an expression and the text it stands for, or less."""
    found: list[Basic | str] = parse(rf"\boxed{{{answer}}}", READERS, parsing_timeout=None)
    return found


def equal(gold: str, answer: str) -> bool:
    """Whether both are the same number, expression or text. The library turns its own errors into False."""
    return bool(verify(read(gold), read(answer), timeout_seconds=None))


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
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    logging.disable()
    replies = os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_WRONLY)
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
