"""Seconds by part of a step or of a push, from marks at the borders between the parts. A mark costs a microsecond."""

import time
from itertools import pairwise
from typing import Any

import torch


class PartClock:
    """On a GPU a mark is a CUDA event, which its stream passes when the work before it is done: nothing waits there."""

    def __init__(self, on_gpu: bool) -> None:
        self._on_gpu = on_gpu
        self._marks: list[tuple[str, Any]] = []  # none outside a step or push

    def start(self) -> None:
        """A step or push begins."""
        self._marks = [("", self._now())]

    def mark(self, part: str) -> None:
        """What was done since the last mark is `part`; nothing where none has begun."""
        if self._marks:
            self._marks.append((part, self._now()))

    def take(self) -> dict[str, float]:
        """Seconds by part since `start`. On a GPU this waits for the last mark, as the push that follows would."""
        marks, self._marks = self._marks, []
        if self._on_gpu and marks:
            marks[-1][1].synchronize()
        seconds: dict[str, float] = {}
        for (_, since), (part, until) in pairwise(marks):
            seconds[part] = seconds.get(part, 0.0) + self._between(since, until)
        return seconds

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, since: Any, until: Any) -> float:
        return since.elapsed_time(until) / 1000 if self._on_gpu else until - since
