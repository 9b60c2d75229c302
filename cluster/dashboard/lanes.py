"""Who worked when, as the page shows it: stretches of each lane, never more of them than a page can hold.

A stretch is a span, or spans of one name that are nearer to each other than a pixel; of such a one it is also known how
much of it is work. What `Activity.take` cut is put together first, so that a run that goes on and its files look alike.
"""

from collections import deque
from collections.abc import Iterable
from itertools import chain
from math import inf
from operator import attrgetter
from typing import Any

from cluster.observe.timeline import in_order
from evidence.telemetry import Span

LANES_S, STEPS = 180.0, 3  # that are shown: so many seconds, or steps where they take longer
PIXELS = 600  # of a lane; the pauses between spans that are shorter are not drawn
SOFT = 10  # pixels of a stretch with such pauses at most: longer ones would not say when the work was
BOXES = 3000  # stretches of all lanes on the page
KEPT = 1000  # stretches that are remembered of each name of a lane

# What a lane does, and the place of its colour on the page. Waiting has none.
COLOURS = {
    "sample": 0, "score": 1, "learn": 2, "push": 3, "probe": 4, "canary": 5, "check": 6, "verify": 6, "write": 7,
    "pause": 0, "gather": 1, "digest": 2, "send": 3, "load": 4, "start": 6, "start engines": 6, "pause scoring": 1,
    "sleep": 0, "wake": 7, "save": 7, "export": 1, "optimizer": 6,
}  # fmt: skip
_ALL = ""  # the name of a lane's work of any name


def is_work(name: str) -> bool:
    """Whether it counts as work: waiting does not, and of the ranks' gradients most is waiting for the slowest."""
    return name != "reduce" and not name.startswith("wait")


Stretch = tuple[float, float, float]  # begin and end, Unix times, and the seconds of it that are work


class _Track:
    """What one lane did of one name. The last span stands apart: it may go on."""

    def __init__(self) -> None:
        self.past: deque[Stretch] = deque(maxlen=KEPT)
        self.begin = self.end = -inf

    def add(self, begin: float, end: float) -> None:
        """The next span, of which what was there before counts once."""
        if begin > self.end:
            if self.end > -inf:
                _put(self.past, (self.begin, self.end, self.end - self.begin), LANES_S / PIXELS)
            self.begin, self.end = begin, end
        elif end > self.end:
            self.end = end

    def within(self, begin: float, end: float) -> list[Stretch]:
        """What lies there. Of what is remembered it looks at the end alone."""
        found = deque[Stretch]()
        for since, until, busy in chain([(self.begin, self.end, self.end - self.begin)], reversed(self.past)):
            if until <= begin:
                break
            if since < end:
                first, last = max(since, begin), min(until, end)
                found.appendleft((first, last, busy * (last - first) / (until - since)))
        return list(found)

    @property
    def began(self) -> float:
        return self.past[0][0] if self.past else self.begin


def _put(stretches: "deque[Stretch] | list[Stretch]", later: Stretch, near: float) -> None:
    """Adds a stretch, or makes it one with the last where that is near. near: seconds of a pixel."""
    if stretches:
        begin, end, busy = stretches[-1]
        if later[0] - end <= near and later[1] - begin <= SOFT * near:
            stretches[-1] = begin, later[1], busy + later[2]
            return
    stretches.append(later)


def _coarser(stretches: Iterable[Stretch], near: float) -> list[Stretch]:
    found: list[Stretch] = []
    for stretch in stretches:
        _put(found, stretch, near)
    return found


class Lanes:
    """Put together batch by batch, with the spans of a lane and name in order."""

    def __init__(self) -> None:
        self._tracks: dict[tuple[str, str], _Track] = {}
        self._of: dict[tuple[str, str], list[_Track]] = {}  # those that spans of a lane and name are added to
        self._until = -inf

    def add(self, spans: Iterable[Span]) -> None:
        for span in sorted((span for span in spans if span.begin < span.end), key=attrgetter("begin")):
            key = span.lane, span.name
            if key not in self._of:
                names = (span.name, _ALL) if is_work(span.name) else (span.name,)
                self._of[key] = [self._tracks.setdefault((span.lane, name), _Track()) for name in names]
            for track in self._of[key]:
                track.add(span.begin, span.end)
            self._until = max(self._until, span.end)

    def shown(self, step_s: float, finished: float | None = None) -> dict[str, Any]:
        """As the page reads it: a lane's share at work, and its stretches [begin, end, place of the name, seconds of
        work where it is not all], in seconds from the beginning of the time shown.

        step_s: of the last step. finished: when that was, of a run that has come to its end: what is shown ends there.
        """
        end, most = self._until if finished is None else finished, max(LANES_S, STEPS * step_s)
        full = [track.began for track in self._tracks.values() if len(track.past) == KEPT]
        begin = max(end - most, min((track.began for track in self._tracks.values()), default=inf), *full)
        if begin >= end:
            return {"title": "", "seconds": 0.0, "names": [], "rows": []}
        found = {key: track.within(begin, end) for key, track in self._tracks.items()}
        worked = {lane: sum(busy for _, _, busy in own) for (lane, name), own in found.items() if name == _ALL}
        drawn = _bounded({key: own for key, own in found.items() if key[1] != _ALL and own}, (end - begin) / PIXELS)
        names = sorted({name for _, name in drawn}, key=lambda name: (not is_work(name), name))
        rows: dict[str, list[list[float]]] = {lane: [] for lane in in_order({lane for lane, _ in drawn})}
        for (lane, name), own in sorted(drawn.items()):
            rows[lane] += [_box(one, begin, names.index(name)) for one in own]
        seconds = end - begin
        span = f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"
        return {
            "title": f"the last {span}" if finished is None else f"{span} up to the end of the last step",
            "seconds": round(seconds, 2),
            "names": [[name, COLOURS.get(name, 7) if is_work(name) else None] for name in names],
            "rows": [
                {"lane": lane, "share": round(worked.get(lane, 0.0) / seconds, 4), "spans": own}
                for lane, own in rows.items()
            ],
        }


def _bounded(drawn: dict[tuple[str, str], list[Stretch]], near: float) -> dict[tuple[str, str], list[Stretch]]:
    """At most BOXES stretches: the more there are, the longer a pixel is. Lanes and names themselves are no more."""
    if near > LANES_S / PIXELS:
        drawn = {key: _coarser(own, near) for key, own in drawn.items()}
    while sum(map(len, drawn.values())) > max(BOXES, len(drawn)):
        near *= 2
        drawn = {key: _coarser(own, near) for key, own in drawn.items()}
    return drawn


def _box(stretch: Stretch, since: float, name: int) -> list[float]:
    begin, end, busy = stretch
    box = [round(begin - since, 2), round(end - since, 2), name]
    return box if busy > 0.99 * (end - begin) else [*box, round(busy, 2)]
