"""Series that grow while a run lasts, and thinned to what a chart can show."""

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isnan

import numpy as np
from numpy.typing import NDArray

from cluster.dashboard.text import script_text

WHOLE = 480  # points of a chart of which all are shown, and at most of those before the newest of a longer one
VALUES = 12_000  # of all its series together, which is less where there are many
NEWEST = 240  # points of a longer one that are all shown
NEWEST_VALUES = 3_000  # of all its series together
STRIDE = 32  # points more or less of the newest: those before them are looked at as seldom
OWN_PEAKS = 8  # series up to which each keeps its own peaks; of more the chart keeps its least and its greatest
SMALLEST = -290  # power of ten, below which is nothing; a float's own least one has no inverse
NAN = float("nan")

Values = Mapping[str, float | None]
Points = list[str]  # of x and of each series, as the items of a JSON array


class Columns:
    """The series of one chart over a common x; None is a gap, and so is what a series had not before it came."""

    def __init__(self) -> None:
        self._rows = array("d")  # of each point its x, and the value of every series
        self._series: dict[str, str] = {}  # in the order of a row; their names as text
        self._known = _Drawn()
        self._shown: str | None = None  # as long as nothing is new

    @property
    def _width(self) -> int:
        return 1 + len(self._series)

    def append(self, x: float, values: Values) -> None:
        """One point of every series; an x without a value is left out. What is there from this x on goes: a resumed run
        repeats steps."""
        while self._rows and self._rows[-self._width] >= x:
            self._known, self._shown = _Drawn(), None
            del self._rows[-self._width :]
        known = {name: value for name, value in values.items() if value is not None}
        if not known:
            return
        if not known.keys() <= self._series.keys():
            self._widen([name for name in known if name not in self._series])
        self._add(x, [known.get(name, NAN) for name in self._series])

    def gap(self, x: float) -> None:
        """No line leads over x; of gaps that follow each other the first is enough."""
        width = self._width
        if self._rows and x > self._rows[-width] and not all(map(isnan, self._rows[-width + 1 :])):
            self._add(x, [NAN] * (width - 1))

    def _add(self, x: float, values: list[float]) -> None:
        self._shown = None
        self._rows.append(x)
        self._rows.extend(values)

    def _widen(self, names: list[str]) -> None:
        """More series, which have no values before."""
        known = self._values(0, len(self._rows) // self._width)
        self._series |= {name: script_text(name) for name in names}
        missing = np.full((len(names), known.shape[1]), NAN)
        self._rows = array("d", np.concatenate([known, missing]).T.tobytes())

    def shown(self) -> str:
        """JSON: {"x": [...], "series": {name: [...]}}, with null for a gap. Of a chart that is thinned also "each", how
        many points a bucket has of which only some are there, and "whole", the x from which on all are."""
        if self._shown is None:
            drawn = self._drawn()
            x, *series = drawn.text() or [""]
            members = ",".join(f"{name}:[{text}]" for name, text in zip(self._series.values(), series, strict=True))
            whole = self._rows[drawn.cut * self._width] if drawn.size > 1 else None
            thin = "" if whole is None else f',"each":{drawn.size},"whole":{whole:.13g}'
            self._shown = f'{{"x":[{x}],"series":{{{members}}}{thin}}}'
        return self._shown

    def _drawn(self) -> "_Drawn":
        """The points that are shown. A point is looked at once as it comes, once as it is no more among the newest, and
        once as its bucket is full: a write takes as long at step 10,000 as at step 1,000."""
        num, count = len(self._series), len(self._rows) // self._width
        most = min(WHOLE, VALUES // max(num, 1))
        newest = max(min(NEWEST, NEWEST_VALUES // max(num, 1)), 1)
        cut = 0 if count <= most else max(count - newest, 0) // STRIDE * STRIDE
        size = 1 << max(-(-cut // max(most // _marks(num), 1)) - 1, 0).bit_length()
        if (size, num) != (self._known.size, self._known.series):
            self._known = _Drawn(size, num)
        self._known = self._known.at(cut, count, self._values)
        return self._known

    def _values(self, begin: int, end: int) -> NDArray[np.float64]:
        """[1 + S, N]: x and the series, of these points."""
        return np.frombuffer(self._rows).reshape(-1, self._width)[begin:end].T.copy()


@dataclass(frozen=True)
class _Drawn:
    """What is shown of `series` series: of the buckets of `size` points which are full some, of the points from `full`
    to `cut` some, and of those from there to `count` all."""

    size: int = 1
    series: int = 0
    full: int = 0
    cut: int = 0
    count: int = 0
    buckets: Sequence[str] = ()
    rest: Sequence[str] = ()
    newest: Sequence[str] = ()

    def text(self) -> Points:
        """All of them; nothing where there is none."""
        parts = [part for part in (self.buckets, self.rest, self.newest) if part]
        return [",".join(row) for row in zip(*parts, strict=True)]

    def at(self, cut: int, count: int, values: Callable[[int, int], NDArray[np.float64]]) -> "_Drawn":
        """The same with more points. values: of them from one place to another."""

        def some(begin: int, end: int) -> Points:
            found = values(begin, end)
            return _points(found[:, thinned(found[1:], self.size)]) if end > begin else []

        full, buckets, rest, newest = cut // self.size * self.size, self.buckets, self.rest, self.newest
        if full > self.full:
            buckets = _joined(buckets, some(self.full, full))
        if cut > self.cut:
            rest = some(full, cut)
            left = self.count - cut  # of those that were the newest
            newest = [text.split(",", cut - self.cut)[-1] for text in newest] if left > 0 else ()
        begin = max(self.count, cut)
        if count > begin:
            newest = _joined(newest, _points(values(begin, count)))
        return replace(self, full=full, cut=cut, count=count, buckets=buckets, rest=rest, newest=newest)


def _joined(before: Sequence[str], after: Sequence[str]) -> Points:
    """Points after others; either may be nothing."""
    if not (before and after):
        return [*before, *after]
    return [f"{old},{new}" for old, new in zip(before, after, strict=True)]


def thinned(y: NDArray[np.float64], size: int) -> NDArray[np.intp]:
    """Places [K] of [S, N] that a chart shows: the first and last of each bucket of `size` points, its first gap, and
    where each series, or of many any, is least and greatest in it, so that no peak of the chart is lost."""
    if len(y) > OWN_PEAKS:
        y = np.array([np.fmin.reduce(y), np.fmax.reduce(y)])
    count = y.shape[1]
    starts = np.arange(0, count, size)
    padded = np.full((len(y), len(starts) * size), NAN)
    padded[:, :count] = y
    buckets = padded.reshape(len(y), len(starts), size)
    least = np.where(np.isnan(buckets), np.inf, buckets).argmin(axis=2) + starts
    most = np.where(np.isnan(buckets), -np.inf, buckets).argmax(axis=2) + starts
    ends = np.minimum(starts + size, count) - 1
    gaps = np.isnan(buckets).all(axis=0).argmax(axis=1) + starts
    is_shown = np.zeros(len(starts) * size, bool)
    is_shown[np.concatenate([starts, ends, gaps, least.ravel(), most.ravel()])] = True
    return np.flatnonzero(is_shown[:count])


def _marks(series: int) -> int:
    """Places of a bucket at most."""
    return 3 + 2 * (series if series <= OWN_PEAKS else 2)


def _points(values: NDArray[np.float64]) -> Points:
    """values: [1 + S, N], x and the series."""
    digits = np.full((len(values), 1), 5.0)
    digits[0] = 13.0
    text = script_text([_gaps(row) for row in rounded(values, digits).tolist()])
    return text.removeprefix("[[").removesuffix("]]").split("],[")


def rounded(values: NDArray[np.float64], digits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values to so many significant digits, [R, 1] for each row: a chart shows no more, and a file is half as long."""
    with np.errstate(divide="ignore"):
        exponent = np.floor(np.log10(np.abs(values)))
    scale = 10.0 ** (digits - 1 - np.where(np.isfinite(exponent), np.maximum(exponent, SMALLEST), 0))
    return np.round(values * scale) / scale


def _gaps(values: list[float]) -> list[float | None]:
    """JSON has no NaN and no infinity."""
    return [value if -1e308 < value < 1e308 else None for value in values]
