"""The verifier's processes: a few, each of which answers one question at a time. Any number of threads may ask.

They parse what a model wrote, so they get nothing of this process: no descriptor, and of its environment only where
libraries are. What they themselves may use is in boxed_process.py.
"""

import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from queue import LifoQueue
from typing import Annotated

from rollout.cores import num_cores

DEADLINE_S = 60.0  # wall clock, for a process that gets no processor; its own bound is on processor time
START_DEADLINE_S = 120.0  # it imports sympy
SIZE = max(2, min(8, num_cores() // 4))
REMEMBERED = 1 << 16  # verdicts; a question is short

REPLIES = {b"true\n": True, b"false\n": False}

INHERITED = ("PATH", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPATH", "LANG", "LC_ALL")  # names of folders and languages

_COMMAND = (sys.executable, "-P", str(Path(__file__).with_name("boxed_process.py")))


class NoAnswer(Exception):
    """A process ended, or its deadline passed, before it had answered. It need not be the question's fault."""


@dataclass(frozen=True)
class Verdicts:
    """How many questions were answered how."""

    judged: Annotated[int, "answers", "that the verifier's processes judged"] = 0
    repeated: Annotated[int, "answers", "whose verdict was known: the same answer was put to them before"] = 0
    costly: Annotated[int, "answers", "wrong, since they took more than their processor time"] = 0
    lost: Annotated[int, "answers", "wrong, since two of the verifier's processes in turn gave no verdict"] = 0

    def __sub__(self, other: "Verdicts") -> "Verdicts":
        return Verdicts(**{name: count - asdict(other)[name] for name, count in asdict(self).items()})


class Judge:
    """One process, for one thread at a time; started anew after a question that it did not survive.

    Raises:
        RuntimeError: the process does not start.
    """

    def __init__(self, command: tuple[str, ...] = _COMMAND, deadline_s: float = DEADLINE_S) -> None:
        self._command, self._deadline_s = command, deadline_s
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, *question: str) -> bool | None:
        """The process's answer; None where the question took more than its processor time.

        Raises:
            NoAnswer: it ended otherwise, or did not answer within the deadline.
        """
        if self._process is None or self._process.poll() is not None:  # it may have died since the last question
            self.close()
            self._process = self._start()
        line = self._reply(self._process, json.dumps(question).encode() + b"\n")
        if line in REPLIES:
            return REPLIES[line]
        if self.close() == -signal.SIGPROF:
            return None
        raise NoAnswer

    def _reply(self, process: "subprocess.Popen[bytes]", question: bytes) -> bytes:
        assert process.stdin is not None
        try:
            process.stdin.write(question)
            process.stdin.flush()
        except BrokenPipeError:
            return b""
        return _read_line(process, self._deadline_s)

    def _start(self) -> "subprocess.Popen[bytes]":
        pipe = subprocess.PIPE
        process = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, stderr=pipe, env=bare(os.environ))
        if _read_line(process, START_DEADLINE_S) != b"ready\n":
            process.kill()
            said = process.communicate()[1].decode(errors="replace").strip().splitlines()
            raise RuntimeError(f"verifier: its process did not start: {said[-1] if said else 'it said nothing'}")
        return process

    def close(self) -> int | None:
        """Ends the process; a later question starts another. Returns what it ended with."""
        ended, self._process = self._process, None
        if ended is None:
            return None
        ended.kill()  # which changes nothing for one that has ended
        with suppress(BrokenPipeError):  # what it was asked is still to be sent
            ended.communicate()
        return ended.wait()


class Judges:
    """A pool of them, which remembers what they said.

    Raises:
        RuntimeError: a process does not start.
    """

    def __init__(self, size: int = SIZE, command: tuple[str, ...] = _COMMAND, deadline_s: float = DEADLINE_S) -> None:
        self._all = [Judge(command, deadline_s) for _ in range(size)]
        self._idle: LifoQueue[Judge] = LifoQueue()  # so that one thread keeps to one process
        for judge in self._all:
            self._idle.put(judge)
        self._remembered = lru_cache(REMEMBERED)(self._first_answer)  # which forgets what raises
        self._counts, self._counting = Counter[str](), threading.Lock()

    def ask(self, *question: str) -> bool:
        """What a process says. No where it takes too long, and where a second one has no answer either."""
        for _ in range(2):
            with suppress(NoAnswer):
                return self._remembered(*question)
        self._count("lost")
        return False

    def _first_answer(self, *question: str) -> bool:
        judge = self._idle.get()  # each is back within its deadlines
        try:
            answer = judge.ask(*question)
        finally:
            self._idle.put(judge)
        self._count("costly" if answer is None else "judged")
        return bool(answer)

    def _count(self, name: str) -> None:
        with self._counting:
            self._counts[name] += 1

    def verdicts(self) -> Verdicts:
        """All since the pool was made."""
        with self._counting:
            return Verdicts(**self._counts, repeated=self._remembered.cache_info().hits)

    def close(self) -> None:
        """Ends the processes, when nobody asks."""
        for judge in self._all:
            judge.close()


def bare(environment: Mapping[str, str]) -> dict[str, str]:
    """What of an environment a process needs to start. No key and no token."""
    return {name: environment[name] for name in INHERITED if name in environment}


def _read_line(process: "subprocess.Popen[bytes]", deadline_s: float) -> bytes:
    """The next line; nothing where the process ends or the deadline passes first. Lines are short and whole."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], deadline_s)
    return process.stdout.readline() if ready else b""
