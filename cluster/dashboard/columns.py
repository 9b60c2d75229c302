"""Series that grow while a run lasts, and thinned to what a chart can show."""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isnan

import numpy as np
from numpy.typing import NDArray

from cluster.dashboard.text import script_text

WHOLE = 480  # points of a chart at most
VALUES = 12_000  # of all its series together, which is less where there are many
OWN_PEAKS = 8  # series up to which each keeps its own peaks; of more the chart keeps its least and its greatest
NAN = float("nan")

Values = Mapping[str, float | None]
Points = list[str]  # of x and of each series, as the items of a JSON array


class Columns:
    """The series of one chart over a common x; None is a gap, and so is what a series had not before it came."""

    def __init__(self) -> None:
        self._rows = array("d")  # of each point its x, and the value of every series
        self._series: dict[str, str] = {}  # in the order of a row; their names as text
        self._full = _Full()
        self._shown: str | None = None  # as long as nothing is new

    @property
    def _width(self) -> int:
        return 1 + len(self._series)

    def append(self, x: float, values: Values) -> None:
        """One point of every series; an x without a value is left out. What is there from this x on goes: a resumed run
        repeats steps."""
        while self._rows and self._rows[-self._width] >= x:
            self._full, self._shown = _Full(), None
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
        """JSON: {"x": [...], "series": {name: [...]}}, at most WHOLE points and VALUES values, with null for a gap."""
        if self._shown is None:
            x, *series = self._points()
            members = ",".join(f"{name}:[{text}]" for name, text in zip(self._series.values(), series, strict=True))
            self._shown = f'{{"x":[{x}],"series":{{{members}}}}}'
        return self._shown

    def _points(self) -> Points:
        """The points that are shown. A bucket that is full is looked at once: a write takes as long at step 10,000 as
        at step 1,000."""
        num, count = len(self._series), len(self._rows) // self._width
        most = min(WHOLE, VALUES // max(num, 1))
        if count <= most:
            return _points(self._values(0, count))
        buckets = max(most // _marks(num), 1)
        size = 1 << (-(-count // buckets) - 1).bit_length()
        if (size, num) != (self._full.size, self._full.series):
            self._full = _Full(size, num)
        begin, full = self._full.count, count // size * size
        if full > begin:
            points = _joined(self._full.points, self._thinned(begin, full))
            self._full = replace(self._full, count=full, points=points)
        return _joined(self._full.points, self._thinned(full, count)) if count > full else [*self._full.points]

    def _values(self, begin: int, end: int) -> NDArray[np.float64]:
        """[1 + S, N]: x and the series, of these points."""
        return np.frombuffer(self._rows).reshape(-1, self._width)[begin:end].T.copy()

    def _thinned(self, begin: int, end: int) -> Points:
        values = self._values(begin, end)
        return _points(values[:, thinned(values[1:], self._full.size)])


@dataclass(frozen=True)
class _Full:
    """Of `series` series the buckets of `size` points that are full. count: the points that they are of."""

    size: int = 0
    series: int = 0
    count: int = 0
    points: Sequence[str] = ()


def _joined(before: Sequence[str], points: Points) -> Points:
    """before: as points, or nothing."""
    return [f"{old},{new}" for old, new in zip(before, points, strict=True)] if before else points


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
    scale = 10.0 ** (digits - 1 - np.where(np.isfinite(exponent), exponent, 0))
    return np.round(values * scale) / scale


def _gaps(values: list[float]) -> list[float | None]:
    """JSON has no NaN and no infinity."""
    return [value if -1e308 < value < 1e308 else None for value in values]
