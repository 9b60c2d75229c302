"""What an observer sees of a run while it runs: a sample every few seconds, and who worked when.

RUN/samples.jsonl has one `Sample` a line, RUN/trace.jsonl one `Span`. Times are Unix times in seconds.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from math import inf
from operator import attrgetter
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from evidence.lines import MOST, appending, is_amount, read_lines

R = TypeVar("R")
FORMAT = 1  # of the lines that this version writes


@dataclass(frozen=True)
class EngineState:
    """One engine at one moment."""

    pool: Annotated[str, "", "student or teacher"]
    up: Annotated[bool, "", "whether it answered"]
    outstanding_tokens: Annotated[int, "tokens", "given to the engine and not answered"]
    sequences: Annotated[int, "sequences", "given to the engine and not answered"]
    stats: Annotated[Mapping[str, float], "", "what the engine counts itself; empty for a server"] = field(
        default_factory=dict
    )


@dataclass(frozen=True)
class Sample:
    """The rollout service at one moment.

    Example:
        Sample(time=1795834800.0, version=3, groups={"sampling": 2, "scoring": 1, "done": 1}, oldest_group_s=4.2,
               waiting={"student": 0, "teacher": 3}, engines={"student engine 0": EngineState(...)})
    """

    time: Annotated[float, "s", "Unix time of the answer"]
    version: Annotated[int, "steps", "policy version that the student's engines hold"] = 0
    groups: Annotated[Mapping[str, int], "groups", "by state: sampling, verifying, scoring, done"] = field(
        default_factory=dict
    )
    oldest_group_s: Annotated[float, "s", "age of the oldest group that is not done; 0 where there is none"] = 0.0
    waiting: Annotated[Mapping[str, int], "pieces", "of work, by pool, that no engine has room for"] = field(
        default_factory=dict
    )
    engines: Annotated[Mapping[str, EngineState], "", "by the engine's name"] = field(default_factory=dict)
    fault: Annotated[str, "", "why the service did not answer; empty when it did"] = ""


@dataclass(frozen=True)
class Span:
    """A stretch of time in which `lane` did `name`.

    Example:
        Span(lane="student engine 0", name="sample", begin=1795834800.0, end=1795834802.5)
    """

    lane: Annotated[str, "", "who: driver, learner, a rank of several, push (its parts), rollout service, or an engine"]
    name: Annotated[str, "", "what"]
    begin: Annotated[float, "s", "Unix time"]
    end: Annotated[float, "s", "Unix time"]


_BEGIN = attrgetter("begin")


class Activity:
    """Who does what, as spans. Pieces of one lane and name that overlap are one span."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._open: dict[tuple[str, str], tuple[int, float]] = {}  # (pieces, since)
        self._done: list[Span] = []

    @contextmanager
    def piece(self, lane: str, name: str) -> Iterator[None]:
        """Within it `lane` does `name`."""
        pieces, since = self._open.get((lane, name), (0, self._clock()))
        self._open[lane, name] = pieces + 1, since
        try:
            yield
        finally:
            pieces, since = self._open.pop((lane, name))
            if pieces > 1:
                self._open[lane, name] = pieces - 1, since
            else:
                self._done.append(Span(lane, name, since, self._clock()))

    def add(self, spans: Iterable[Span]) -> None:
        """Spans that somebody else has timed."""
        self._done.extend(spans)

    def take(self) -> list[Span]:
        """The spans since the last call. What lasts is cut here, and goes on in the next call's spans."""
        now = self._clock()
        cut = [Span(lane, name, since, now) for (lane, name), (_, since) in self._open.items() if since < now]
        self._open = {key: (pieces, now) for key, (pieces, _) in self._open.items()}
        taken, self._done = [*self._done, *cut], []
        return taken


def joined(spans: Iterable[Span]) -> list[Span]:
    """The spans by their beginning, with what `Activity.take` cut as one."""
    ends: dict[tuple[str, str, float], int] = {}
    whole: list[Span] = []
    for span in sorted(spans, key=_BEGIN):
        place = ends.pop((span.lane, span.name, span.begin), None)
        if place is None:
            place = len(whole)
            whole.append(span)
        else:
            whole[place] = Span(span.lane, span.name, whole[place].begin, span.end)
        ends[span.lane, span.name, span.end] = place
    return whole


def pieces(spans: Iterable[Span], moments: Iterable[float]) -> Iterator[list[Span]]:
    """What of the spans lies before each moment and after the one before it, as `Activity.take` would have cut it then;
    moments: ascending."""
    coming, under_way, since = deque(sorted(spans, key=_BEGIN)), list[Span](), -inf
    for until in moments:
        while coming and coming[0].begin < until:
            under_way.append(coming.popleft())
        yield [Span(s.lane, s.name, max(s.begin, since), min(s.end, until)) for s in under_way if s.end > since]
        under_way, since = [span for span in under_way if span.end > until], until


def shares(spans: Sequence[Span], begin: float, end: float) -> dict[str, float]:
    """The share of [begin, end] in which each lane did anything, 0 to 1."""
    busy: dict[str, float] = {}
    until: dict[str, float] = {}
    for span in sorted(spans, key=_BEGIN):
        done = until.get(span.lane, begin)
        busy.setdefault(span.lane, 0.0)
        if span.end > done:
            busy[span.lane] += max(0.0, min(span.end, end) - max(span.begin, done))
            until[span.lane] = span.end
    return {lane: seconds / (end - begin) if end > begin else 0.0 for lane, seconds in busy.items()}


def append_samples(path: str | os.PathLike[str], samples: Iterable[Sample]) -> None:
    """Adds lines to samples.jsonl. OSError names the file."""
    _append(path, samples)


def append_spans(path: str | os.PathLike[str], spans: Iterable[Span]) -> None:
    """Adds lines to trace.jsonl. OSError names the file."""
    _append(path, spans)


def _append(path: str | os.PathLike[str], records: Iterable[Sample | Span]) -> None:
    lines = [{"format": FORMAT} | asdict(record) for record in records]
    if lines:
        with appending(path) as file:
            file.append(*lines)


def read_samples(path: str | os.PathLike[str]) -> list[Sample]:
    """The samples of a run in order; none where there is no file. ValueError names the file and the line."""
    return list(read_lines(path, _sample, "a sample of a run"))


def read_spans(path: str | os.PathLike[str]) -> list[Span]:
    """The spans of a run, joined; none where there is no file. ValueError names the file and the line."""
    return joined(read_lines(path, _span, "a span of a run"))


def _sample(line: Mapping[str, Any]) -> Sample:
    engines = {name: _checked(EngineState(**state)) for name, state in line["engines"].items()}
    return _checked(Sample(**_values(line) | {"engines": engines}))


def _span(line: Mapping[str, Any]) -> Span:
    return _checked(Span(**_values(line)))


def _checked(record: R) -> R:
    """The record, whose fields are of their kinds. TypeError names one that is not."""
    of: type = type(record)
    for name, (kind, is_mapping, types) in _kinds(of).items():
        value = getattr(record, name)
        is_one = type(value) is dict if is_mapping else type(value) in types
        if not is_one or (is_mapping and not all(type(one) in types for one in value.values())):
            raise TypeError(f"{name}: found {value!r}, expected {kind}")
        if type(value) in (float, int) and not is_amount(value):  # a time, or a count
            raise TypeError(f"{name}: found {value!r}, expected a finite number, at most {MOST:.0e} in size")
    return record


@cache
def _kinds(record: type) -> dict[str, tuple[str, bool, tuple[type, ...]]]:
    """Of each field: its kind in words, whether it is a mapping, and the types of a value of JSON that is one."""
    kinds: dict[str, tuple[str, bool, tuple[type, ...]]] = {}
    for name, hint in get_type_hints(record).items():
        is_mapping = get_origin(hint) is Mapping
        kind = get_args(hint)[1] if is_mapping else hint
        words = f"an object of {kind.__name__}" if is_mapping else kind.__name__
        kinds[name] = words, is_mapping, (float, int) if kind is float else (kind,)
    return kinds


def _values(line: Mapping[str, Any]) -> dict[str, Any]:
    if line["format"] != FORMAT:
        raise ValueError(f"format: found {line['format']!r}, expected {FORMAT}: a newer version wrote it")
    return {key: value for key, value in line.items() if key != "format"}
