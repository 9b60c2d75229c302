"""What each of the two services waits for, read from the timeline: time in which it does nothing, by what goes on
meanwhile. The causes are NeMo-RL's idle categories under this project's names."""

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf

from cluster.observe.observer import Batch
from cluster.observe.timeline import PUSH, is_engine
from evidence.telemetry import Sample, Span
from rollout.stages import SERVICE, VERIFY, WRITE

FAR_APART = 5.0  # times what is usual
_WORK = {"sample", "score"}  # of an engine, for a step
_WEIGHTS = {*PUSH, ("driver", "pause scoring"), ("driver", "sleep"), ("driver", "wake")}
_ENGINE = "engine"  # any of them
_START = ("driver", "start engines")
# What goes on while a service waits, the first that does is the cause. verify, write: the rollout service does so, and
# its engines nothing. lag: the learner learns, and until it has, the staleness bound lets no further group begin.
CAUSES: dict[str, dict[str, set[tuple[str, str]]]] = {
    "rollout": {
        "probe": {("driver", "probe")},
        "weights": _WEIGHTS,
        "verify": {(SERVICE, VERIFY)},
        "write": {(SERVICE, WRITE)},
        "lag": {("learner", "learn")},
        "start": {_START, (_ENGINE, "start")},
        "other": set(),
    },
    "learner": {
        "probe": {("driver", "probe")},
        "rollouts": {("driver", "wait for rollouts")},
        "weights": _WEIGHTS,
        "start": {_START},
        "other": set(),
    },
}


@dataclass(frozen=True)
class Window:
    """A stretch of time, in Unix seconds, and how much of it each service waited, s, by (service, cause), without those
    of 0."""

    begin: float
    end: float
    seconds: dict[tuple[str, str], float]


class Apart:
    """Whether samples are so far apart that the run was not there, or did not answer: much further than every_s, and
    than the two before them, since a resume may sample less often than the recipe in the run's folder says."""

    def __init__(self, every_s: float) -> None:
        self._every_s, self._before = every_s, deque[float](maxlen=2)

    def are(self, seconds: float) -> bool:
        """The next two, which are so many seconds apart."""
        found = seconds > FAR_APART * max(self._every_s, min(self._before, default=0.0))
        self._before.append(seconds)
        return found


def together(windows: Sequence[Window]) -> Window:
    """Windows that follow each other, as one."""
    seconds = sum((Counter(window.seconds) for window in windows), Counter[tuple[str, str]]())
    return Window(windows[0].begin, windows[-1].end, dict(seconds))


class Waits:
    """Batch by batch: a window from each sample to the next. It is told once a later sample is there: by then all spans
    of the window have come, which driver and engines cut at moments of their own. Where samples are far
    apart, the run was not there or did not answer, and nothing is told of that time but that in which the
    engines started: nothing samples before they have, so that the first window of a run, and of one that is resumed,
    is from there.

    every_s: seconds from a sample to the next (`observe.every_s`).
    """

    def __init__(self, every_s: float) -> None:
        self._apart = Apart(every_s)
        self._coming: list[tuple[float, str, str, float]] = []  # a heap by the spans' beginning
        self._begun: list[Span] = []
        self._windows: deque[tuple[float, float]] = deque()
        self._sampled, self._starts = -inf, list[float]()  # the last sample, and when engines began to start since then

    def add(self, batch: Batch) -> Iterator[Window]:
        """The windows that are known now; at the run's end the last one too."""
        for span in batch.spans:
            heappush(self._coming, (span.begin, span.lane, span.name, span.end))
            if (span.lane, span.name) == _START:
                self._starts.append(span.begin)
        for sample in batch.samples:
            if not sample.fault:
                self._add_sample(sample.time)
        while self._windows and (batch.ended or self._windows[0][1] < self._sampled):
            begin, end = self._windows.popleft()
            while self._coming and self._coming[0][0] < end:
                since, lane, name, until = heappop(self._coming)
                self._begun.append(Span(lane, name, since, until))
            yield Window(begin, end, waited(self._begun, begin, end))
            self._begun = [span for span in self._begun if span.end > end]

    def _add_sample(self, time: float) -> None:
        start = max((start for start in self._starts if self._sampled < start < time), default=time)
        far = self._sampled == -inf or self._apart.are(time - self._sampled)
        begin = start if far else self._sampled
        if begin < time:
            self._windows.append((begin, time))
        self._sampled, self._starts = time, [start for start in self._starts if start > time]


def windows(samples: Sequence[Sample], spans: Sequence[Span], every_s: float) -> list[Window]:
    """Those between the samples, at once."""
    if not samples:
        return []
    recent = tuple(span for span in spans if span.end > samples[0].time)
    return list(Waits(every_s).add(Batch(samples[-1].time, tuple(samples), recent, ended="finished")))


def waited(spans: Iterable[Span], begin: float, end: float) -> dict[tuple[str, str], float]:
    """Of [begin, end] in Unix seconds, how long each service waited, s, by (service, cause)."""
    edges = [(begin, 0, ("", "")), (end, 0, ("", ""))]
    for span in spans:
        since, until = max(span.begin, begin), min(span.end, end)
        if since < until:
            edges += [(since, 1, (span.lane, span.name)), (until, -1, (span.lane, span.name))]
    edges.sort()
    open_spans, found = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for place, (at, change, key) in enumerate(edges[:-1]):
        open_spans[key] += change
        if (seconds := edges[place + 1][0] - at) > 0:
            on = {pair for pair, count in open_spans.items() if count > 0}
            for pair in _waiting(on):
                found[pair] += seconds  # type: ignore[assignment]
    return dict(found)


def _waiting(on: set[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Services that do nothing while this is under way, each with the cause."""
    engines = {name for lane, name in on if is_engine(lane)}
    on = on | {(_ENGINE, name) for name in engines}
    if not engines & _WORK:
        yield "rollout", _cause("rollout", on)
    if not any(lane == "learner" for lane, _ in on):
        yield "learner", _cause("learner", on)


def _cause(service: str, on: set[tuple[str, str]]) -> str:
    return next((name for name, under_way in CAUSES[service].items() if on & under_way), "other")
