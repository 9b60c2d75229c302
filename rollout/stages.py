"""How long the stages of a step took, and how much they did."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

SERVICE = "rollout service"  # its lane of the timeline: what it does itself, beside its engines
VERIFY, WRITE = "verify", "write"  # there


@dataclass(frozen=True)
class StageTime:
    """One stage's own wall time and the tokens that it worked on."""

    seconds: Annotated[float, "s", "the stage's own wall time"]
    tokens: Annotated[int, "tokens", "that it worked on; 0: it is not about tokens"]

    @property
    def tokens_per_s(self) -> float:
        """0 in no time."""
        return self.tokens / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class StepTime:
    """A step as its driver times it. own: the driver's own stages. pace_s: mean time of a step so far."""

    wall_s: float
    own: Mapping[str, StageTime]
    pace_s: float | None = None


class Stopwatch:
    """Splits one span of wall time into stages that follow each other."""

    def __init__(self) -> None:
        self._mark = time.perf_counter()

    def stage(self, tokens: int) -> StageTime:
        """The time since the last call, for `tokens` tokens of work."""
        now = time.perf_counter()
        seconds, self._mark = now - self._mark, now
        return StageTime(seconds, tokens)


class Meter:
    """A stage whose pieces overlap: the time in which at least one of them was in flight."""

    def __init__(self) -> None:
        self._pieces = self._tokens = 0
        self._seconds = self._since = 0.0

    @contextmanager
    def piece(self) -> Iterator[None]:
        """Within it one piece of the stage's work is in flight."""
        self._read()
        self._pieces += 1
        try:
            yield
        finally:
            self._read()
            self._pieces -= 1

    def count(self, tokens: int) -> None:
        """`tokens` more were worked on."""
        self._tokens += tokens

    def take(self) -> StageTime:
        """Time and tokens since the last call."""
        self._read()
        taken = StageTime(self._seconds, self._tokens)
        self._seconds, self._tokens = 0.0, 0
        return taken

    def _read(self) -> None:
        now = time.perf_counter()
        if self._pieces:
            self._seconds += now - self._since
        self._since = now
