r"""The verifier: does the last \boxed{...} of a response equal the gold answer?

Equality is that of math-verify, asked of a process of its own (boxed_process.py). Seven characters such as 9^{9^9} keep
computer algebra busy for ever, so that no bound on the length protects the caller, and the library's own timeouts are
signals, which only a main thread can ask for and an actor's event loop is none. An answer that takes long is wrong.
"""

import atexit
import json
import re
import select
import subprocess
import sys
import threading
from functools import cache
from pathlib import Path

MAX_CHARS = 256  # a longer box holds no final answer
DEADLINE_S = 60.0  # wall clock, for a process that gets no processor; its own bound is on processor time
START_DEADLINE_S = 120.0  # it imports sympy

MAX_WORDS = 10  # of a gold answer; more are a sentence, which no answer repeats by chance
_VERBS = frozenset(("is", "are", "was", "were", "equals", "has", "have"))  # of a sentence around the answer
_NO_CONTENT = re.compile(r"\\(?:text|math|mbox|left|right|operatorname)[a-z]*")  # commands that stand for nothing

_COMMAND = (sys.executable, "-P", str(Path(__file__).with_name("boxed_process.py")))


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
    return bool(answer) and _judge().ask("equal", _tidy(gold), answer)


def is_plain_number(gold: str, response: str) -> bool:
    """`is_correct`, for an answer that is worked out: a whole number, where 3 + 4 would be as good as 7."""
    return re.fullmatch(r"-?\d+", _tidy(last_boxed(response))) is not None and is_correct(gold, response)


def is_single_expression(answer: str) -> bool:
    """Whether an answer is one number, fraction or expression: no text, choice letter, list, set or equation."""
    return bool(_tidy(answer)) and _judge().ask("single", _tidy(answer))


def fault_of_gold(gold: str) -> str | None:
    r"""Why no answer can equal `gold`, or None: its own text in a \boxed{} would not, or no answer is put that way.

    By its text alone, since a file may have thousands: what it says of a text is tested against the verifier.
    """
    if len(gold.strip()) > MAX_CHARS:
        return f"{len(gold.strip())} characters, expected at most {MAX_CHARS}"
    tidy = _tidy(gold)
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


class Judge:
    """One process that answers one question at a time; started anew after a question that it did not survive.

    Raises:
        RuntimeError: the process does not start.
    """

    def __init__(self, command: tuple[str, ...] = _COMMAND, deadline_s: float = DEADLINE_S) -> None:
        self._command, self._deadline_s = command, deadline_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, *question: str) -> bool:
        """The process's answer; False where it gives none within the deadline."""
        with self._lock:
            process = self._process = self._process or self._start()
            assert process.stdin is not None
            try:
                process.stdin.write(json.dumps(question).encode() + b"\n")
                process.stdin.flush()
                line = _read_line(process, self._deadline_s)
            except BrokenPipeError:  # it died of the last question
                line = b""
            if not line:
                self._stop()
            return line == b"true\n"

    def close(self) -> None:
        """Ends the process; a later question starts another."""
        with self._lock:
            self._stop()

    def _start(self) -> "subprocess.Popen[bytes]":
        pipe = subprocess.PIPE
        process = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, stderr=pipe)
        if _read_line(process, START_DEADLINE_S) != b"ready\n":
            process.kill()
            said = process.communicate()[1].decode(errors="replace").strip().splitlines()
            raise RuntimeError(f"verifier: its process did not start: {said[-1] if said else 'it said nothing'}")
        return process

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _read_line(process: "subprocess.Popen[bytes]", deadline_s: float) -> bytes:
    """The next line; nothing where the process ends or the deadline passes first. Lines are short and whole."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], deadline_s)
    return process.stdout.readline() if ready else b""


@cache
def _judge() -> Judge:
    judge = Judge()
    atexit.register(judge.close)
    return judge
