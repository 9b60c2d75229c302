"""What each of the two services waits for, read from the timeline: time in which it does nothing, by what goes on
meanwhile. The causes are NeMo-RL's idle categories under this project's names."""

from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from math import inf
from operator import attrgetter

from cluster.observe.observer import Batch
from cluster.observe.timeline import PUSH, is_engine
from evidence.telemetry import Sample, Span
from rollout.stages import SERVICE, VERIFY, WRITE

FAR_APART = 5.0  # times what is usual
_WORK = {"sample", "score"}  # of an engine, for a step
_WEIGHTS = {*PUSH, ("driver", "pause scoring"), ("driver", "sleep"), ("driver", "wake")}
_ENGINE = "engine"  # any of them
_START = ("driver", "start engines")
_BEGIN = attrgetter("begin")
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
    found = defaultdict[tuple[str, str], float](float)
    for window in windows:
        for of, seconds in window.seconds.items():
            found[of] += seconds
    return Window(windows[0].begin, windows[-1].end, dict(found))


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
        self._coming: list[Span] = []
        self._begun: list[Span] = []  # and may last
        self._windows: deque[tuple[float, float]] = deque()
        self._sampled, self._starts = -inf, list[float]()  # the last sample, and when engines began to start since then

    def add(self, batch: Batch) -> list[Window]:
        """The windows that are known now; at the run's end the last one too."""
        self._coming += batch.spans
        self._starts += [span.begin for span in batch.spans if span.name == _START[1] and span.lane == _START[0]]
        for sample in batch.samples:
            if not sample.fault:
                self._add_sample(sample.time)
        known = []
        while self._windows and (batch.ended or self._windows[0][1] < self._sampled):
            known.append(self._windows.popleft())
        return list(self._waited(known)) if known else []

    def _waited(self, windows: Iterable[tuple[float, float]]) -> Iterator[Window]:
        """windows: the begin and end of each, ascending."""
        coming, place = sorted(self._coming, key=_BEGIN), 0
        for begin, end in windows:
            begun = bisect_left(coming, end, lo=place, key=_BEGIN)
            self._begun += coming[place:begun]
            place = begun
            yield Window(begin, end, waited(self._begun, begin, end))
            self._begun = [span for span in self._begun if span.end > end]
        self._coming = coming[place:]

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
    return Waits(every_s).add(Batch(samples[-1].time, tuple(samples), recent, ended="finished"))


def waited(spans: Iterable[Span], begin: float, end: float) -> dict[tuple[str, str], float]:
    """Of [begin, end] in Unix seconds, how long each service waited, s, by (service, cause)."""
    under_way = defaultdict[tuple[str, str], list[list[float]]](list)  # by what it is of, stretches that are apart
    for span in sorted(spans, key=_BEGIN):
        since = span.begin if span.begin > begin else begin
        until = span.end if span.end < end else end
        if since < until:
            own = under_way[_of(span.lane, span.name)]
            if not own or since > own[-1][1]:
                own.append([since, until])
            elif until > own[-1][1]:
                own[-1][1] = until
    edges = [(begin, ("", "")), (end, ("", ""))]
    edges += [(at, key) for key, own in under_way.items() for stretch in own for at in stretch]
    on, found = set[tuple[str, str]](), defaultdict[tuple[str, str], float](float)
    for (at, key), (after, _) in pairwise(sorted(edges)):
        on ^= {key}
        if after > at:
            for pair in _waiting(on):
                found[pair] += after - at
    return dict(found)


@cache
def _of(lane: str, name: str) -> tuple[str, str]:
    """What goes on, of any engine alike."""
    return (_ENGINE if is_engine(lane) else lane), name


def _waiting(on: set[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Services that do nothing while this is under way, each with the cause."""
    if not any((_ENGINE, name) in on for name in _WORK):
        yield "rollout", _cause("rollout", on)
    if not any(lane == "learner" for lane, _ in on):
        yield "learner", _cause("learner", on)


def _cause(service: str, on: set[tuple[str, str]]) -> str:
    return next((name for name, under_way in CAUSES[service].items() if on & under_way), "other")
