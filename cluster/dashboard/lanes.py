"""Who worked when, as the page shows it: stretches of each lane, never more of them than a page can hold.

A stretch is a span, or spans of one name that are nearer to each other than a pixel; of such a one it is also known how
much of it is work. What `Activity.take` cut is put together first, so that a run that goes on and its files look alike.
"""

from array import array
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.observe.timeline import in_order
from evidence.telemetry import Span

LANES_S, STEPS = 180.0, 3  # that are shown: so many seconds, or steps where they take longer
PIXELS = 600  # of a lane; the pauses between spans that are shorter are not drawn
NEAR_S = LANES_S / PIXELS
SOFT = 10  # pixels of a stretch with such pauses at most: longer ones would not say when the work was
BOXES = 3000  # stretches of all lanes on the page
KEPT = 1000  # stretches that are remembered of each name of a lane

# What a lane does, and the place of its colour on the page. Waiting has none.
COLOURS = {
    "sample": 0, "score": 1, "learn": 2, "push": 3, "probe": 4, "canary": 5, "check": 6, "verify": 6, "write": 7,
    "pause": 0, "gather": 1, "digest": 2, "send": 3, "load": 4, "start": 6, "start engines": 6, "pause scoring": 1,
    "sleep": 0, "wake": 7, "save": 7, "export": 1, "optimizer": 6,
}  # fmt: skip
_STRETCH = 3  # numbers: its begin and end, Unix times, and the seconds of it that are work


def is_work(name: str) -> bool:
    """Whether it counts as work: waiting does not, and of the ranks' gradients most is waiting for the slowest."""
    return name != "reduce" and not name.startswith("wait")


class _Track:
    """What one lane did of one name, or at work at all."""

    def __init__(self) -> None:
        self._past = array("d")  # stretches, one after the other
        self._open = (0.0, 0.0, 0.0)  # the last one, which may become longer
        self._span = (0.0, 0.0)  # the last one, which stands apart: it may go on

    def add(self, spans: Iterable[tuple[float, float]]) -> None:
        """The next spans in order, of which what was there before counts once."""
        (first, last, busy), (since, until) = self._open, self._span
        for begin, end in spans:
            if begin > until:
                if since - last <= NEAR_S and until - first <= SOFT * NEAR_S:
                    last, busy = until, busy + until - since
                else:
                    if busy:
                        self._past.extend((first, last, busy))
                    first, last, busy = since, until, until - since
                since, until = begin, end
            elif end > until:
                until = end
        self._open, self._span = (first, last, busy), (since, until)
        if len(self._past) > 2 * _STRETCH * KEPT:
            del self._past[: -_STRETCH * KEPT]

    def since(self, begin: float) -> NDArray[np.float64]:
        """[K * 3], the stretches that end after it."""
        known = np.frombuffer(self._past)[-_STRETCH * KEPT :]
        first = np.searchsorted(known[1::_STRETCH], begin, side="right")
        since, until = self._span
        return np.concatenate([known[_STRETCH * first :], [*self._open, since, until, until - since]])

    @property
    def began(self) -> float:
        """When the first of them did."""
        if self._past:
            return self._past[max(len(self._past) - _STRETCH * KEPT, 0)]
        return self._open[0] if self._open[2] else self._span[0]

    @property
    def is_full(self) -> bool:
        return len(self._past) >= _STRETCH * KEPT


class Lanes:
    """Put together batch by batch, with the spans of a lane and name in order."""

    def __init__(self) -> None:
        self._tracks = defaultdict[tuple[str, str], _Track](_Track)  # by lane and name
        self._work = defaultdict[str, _Track](_Track)  # of any name, by lane
        self.began, self._until = inf, -inf  # of all that was ever added

    def add(self, spans: Iterable[Span]) -> None:
        new = defaultdict[tuple[str, str], list[tuple[float, float]]](list)
        for span in spans:
            if span.begin < span.end:
                new[span.lane, span.name].append((span.begin, span.end))
        work = defaultdict[str, list[tuple[float, float]]](list)
        for (lane, name), own in new.items():
            own.sort()
            self._tracks[lane, name].add(own)
            self.began, self._until = min(self.began, own[0][0]), max(self._until, *(end for _, end in own))
            if is_work(name):
                work[lane] += own
        for lane, own in work.items():
            self._work[lane].add(sorted(own))

    def shown(self, step_s: float, finished: float | None = None) -> dict[str, Any]:
        """As the page reads it: a lane's share at work, and its stretches, of each in turn its begin and end, in 1/100
        s from the beginning of the time shown, the place of the name, and how much of it is work, in 1/100 s.

        step_s: of the last step. finished: when that was, of a run that has come to its end: what is shown ends there.
        """
        end, most = self._until if finished is None else finished, max(LANES_S, STEPS * step_s)
        tracks = [*self._tracks.values(), *self._work.values()]
        full = [track.began for track in tracks if track.is_full]
        begin = max(end - most, min((track.began for track in tracks), default=inf), *full)
        if begin >= end:
            return {"title": "", "begin": 0.0, "seconds": 0.0, "names": [], "rows": []}
        keys, seconds = sorted(self._tracks), end - begin
        drawn = _bounded(_Stretches.of([self._tracks[key] for key in keys], begin, end), seconds / PIXELS)
        worked = _Stretches.of(list(self._work.values()), begin, end)
        busy = np.bincount(worked.track, worked.busy, len(self._work)) / seconds
        names, rows = drawn.by_lane(keys, begin)
        share = dict(zip(self._work, busy.round(4).tolist(), strict=True))
        span = f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"
        return {
            "title": f"the last {span}" if finished is None else f"{span} up to the end of the last step",
            "begin": round(begin, 2),
            "seconds": round(seconds, 2),
            "names": [[name, COLOURS.get(name, 7) if is_work(name) else None] for name in names],
            "rows": [{"lane": lane, "share": share.get(lane, 0.0), "spans": rows[lane]} for lane in in_order(rows)],
        }


@dataclass(frozen=True)
class _Stretches:
    """Those of several tracks, [K] each: whose, begin, end, and seconds of work."""

    track: NDArray[np.intp]
    begin: NDArray[np.float64]
    end: NDArray[np.float64]
    busy: NDArray[np.float64]

    @classmethod
    def of(cls, tracks: Sequence[_Track], begin: float, end: float) -> "_Stretches":
        """What of them lies in this time."""
        found = [track.since(begin) for track in tracks]
        whose = np.repeat(np.arange(len(found)), [len(own) // _STRETCH for own in found])
        since, until, busy = np.concatenate([np.empty(0), *found]).reshape(-1, _STRETCH).T
        first, last = np.maximum(since, begin), np.minimum(until, end)
        within = first < last
        part = (last - first)[within] / (until - since)[within]
        return cls(whose[within], first[within], last[within], busy[within] * part)

    def coarser(self, near: float) -> "_Stretches":
        """With those of a track as one that are nearer than `near` seconds, and begin in the same SOFT of it."""
        place = self.begin // (SOFT * near)
        apart = (np.diff(self.track) > 0) | (self.begin[1:] - self.end[:-1] > near) | (np.diff(place) > 0)
        first = np.flatnonzero(np.concatenate([[True], apart]))
        last = np.append(first[1:], len(self.begin)) - 1
        return _Stretches(self.track[first], self.begin[first], self.end[last], np.add.reduceat(self.busy, first))

    def by_lane(self, keys: Sequence[tuple[str, str]], since: float) -> tuple[list[str], dict[str, list[int]]]:
        """The names, and by lane its stretches as the page reads them. keys: lane and name of each track, sorted."""
        names = sorted({keys[track][1] for track in set(self.track.tolist())}, key=lambda n: (not is_work(n), n))
        which = np.array([names.index(name) if name in names else -1 for _, name in keys])
        begin, end, busy = (np.rint(100 * times) for times in (self.begin - since, self.end - since, self.busy))
        busy = np.where(self.busy > 0.99 * (self.end - self.begin), end - begin, busy)
        values = np.stack([begin, end, which[self.track], busy], axis=1).astype(int)
        edges = np.searchsorted(self.track, np.arange(len(keys) + 1))
        rows = defaultdict[str, list[int]](list)
        for (lane, _), first, last in zip(keys, edges[:-1], edges[1:], strict=True):
            if first < last:
                rows[lane] += values[first:last].ravel().tolist()
        return names, rows


def _bounded(drawn: _Stretches, near: float) -> _Stretches:
    """At most BOXES stretches: the more there are, the longer a pixel is. Lanes and names themselves are no more."""
    if near > NEAR_S:
        drawn = drawn.coarser(near)
    while len(drawn.track) > max(BOXES, len(set(drawn.track.tolist()))):
        near *= 2
        drawn = drawn.coarser(near)
    return drawn
