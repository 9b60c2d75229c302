r"""The verifier: does the last \boxed{...} of a response equal the gold answer?

Equality is that of math-verify, asked of processes of its own (boxed_pool.py). Seven characters such as 9^{9^9} keep
computer algebra busy for ever, so that no bound on the length protects the caller, and the library's own timeouts are
signals, which only a main thread can ask for and an actor's event loop is none. An answer that takes long is wrong.
Whoever has an event loop asks from a thread beside it.
"""

import atexit
import re
from functools import cache

from rollout.tasks.boxed_numbers import Written, parts, written
from rollout.tasks.boxed_pool import Judges, Verdicts
from rollout.tasks.boxed_terms import is_unfinished

MAX_CHARS = 256  # a longer box holds no final answer
MAX_WORDS = 10  # of a gold answer; more are a sentence, which no answer repeats by chance
_VERBS = frozenset(("is", "are", "was", "were", "equals", "has", "have"))  # of a sentence around the answer
_NO_CONTENT = re.compile(r"\\(?:text|math|mbox|left|right|operatorname)[a-z]*")  # commands that stand for nothing


def last_boxed(text: str) -> str | None:
    r"""What the last \boxed{...} of a text holds; None where there is none, or where the last one never ends."""
    starts = list(re.finditer(r"\\boxed\s*\{", text))
    if not starts:
        return None
    rest, depth = text[starts[-1].end() :], 1
    for mark in re.finditer(r"\\.|[{}]", rest, re.DOTALL):  # \{ and \} are marks of a set, not of a group
        depth += {"{": 1, "}": -1}.get(mark[0], 0)
        if depth == 0:
            return rest[: mark.start()]
    return None


def is_correct(gold: str, response: str) -> bool:
    """Whether the last boxed answer equals `gold`, a number or an expression in plain text or LaTeX.

    No box, an empty one, one of more than MAX_CHARS, and one that the library cannot read in time are wrong.
    """
    answer = _tidy(last_boxed(response))
    return bool(answer) and _judges().ask("equal", _tidy(gold), answer)


def is_worked_out(gold: str, response: str) -> bool:
    r"""`is_correct`, for an answer that is worked out: where `gold` is a number, 3 + 4 is not as good as 7, nor 14/2,
    and a fraction counts in lowest terms. So it is with each number in a list, a tuple, a set or an expression:
    (2 + 1)\pi is not as good as 3\pi."""
    wanted, found = _tidy(gold), _tidy(last_boxed(response))
    return _is_as_far(wanted, found) and is_correct(gold, response)


def _is_as_far(gold: str, answer: str) -> bool:
    """Whether an answer leaves no more to work out than `gold` does."""
    if is_unfinished(answer) and not is_unfinished(gold):
        return False
    wanted, found = parts(gold), parts(answer)
    if (number := written(gold)) is not None:
        wanted, found = [number], [written(answer)]
    if not any(wanted):  # no number
        return True
    in_digits = "%" not in gold  # of which 0.5 is as good as 50%
    others = [sum(part is not Written.WHOLE for part in of) for of in (wanted, found)]
    return found.count(None) <= wanted.count(None) and (not in_digits or others[1] <= others[0])


def verdicts() -> Verdicts:
    """How this process's questions to the verifier were answered so far."""
    return _judges().verdicts()


def is_plain_number(gold: str, response: str) -> bool:
    """`is_correct`, for an answer that is worked out: a whole number, where 3 + 4 would be as good as 7."""
    return re.fullmatch(r"-?\d+", _tidy(last_boxed(response))) is not None and is_correct(gold, response)


def is_single_expression(answer: str) -> bool:
    """Whether an answer is one number, fraction or expression: no text, choice letter, list, set or equation."""
    return bool(_tidy(answer)) and _judges().ask("single", _tidy(answer))


def fault_of_gold(gold: str) -> str | None:
    r"""Why no answer can equal `gold`, or None: its own text in a \boxed{} would not, or no answer is put that way.

    By its text alone, since a file may have thousands: what it says of a text is tested against the verifier.
    """
    if len(gold.strip()) > MAX_CHARS:
        return f"{len(gold.strip())} characters, expected at most {MAX_CHARS}"
    tidy = _tidy(gold)
    if r"\boxed" in tidy:
        return r"a \boxed{} of its own, expected what it holds"
    if last_boxed(rf"\boxed{{{tidy}}}") != tidy:
        return "braces that do not pair or a \\ at its end, expected what a \\boxed{} can hold"
    if not any(mark.isalnum() or not mark.isascii() for mark in _NO_CONTENT.sub("", tidy)):
        return "nothing in it, expected a number, an expression or a word"
    words = re.findall(r"(?<![\\A-Za-z])[A-Za-z]+", tidy)
    if len(words) >= MAX_WORDS or not _VERBS.isdisjoint(word.lower() for word in words):
        return "a sentence, expected what it says alone: 4, and not: the answer is 4"
    return None


def _tidy(answer: str | None) -> str:
    """Without what surrounds it; "" stands for no answer."""
    tidy = (answer or "").strip().removesuffix(".").strip()
    return tidy if len(tidy) <= MAX_CHARS else ""


@cache
def _judges() -> Judges:
    judges = Judges()
    atexit.register(judges.close)
    return judges
