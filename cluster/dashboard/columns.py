"""Series that grow while a run lasts, and thinned to what a chart can show."""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isnan

import numpy as np
from numpy.typing import NDArray

from cluster.dashboard.text import list_of, object_of, script_text

WHOLE = 480  # points of a chart at most
VALUES = 12_000  # of all its series together, which is less where there are many
OWN_PEAKS = 8  # series up to which each keeps its own peaks; of more the chart keeps its least and its greatest
NAN = float("nan")

Values = Mapping[str, float | None]
Points = list[str]  # of x and of each series, as the items of a JSON array


class Columns:
    """The series of one chart over a common x; None is a gap, and so is what a series had not before it came."""

    def __init__(self) -> None:
        self.x = array("d")
        self.series: dict[str, array[float]] = {}
        self._full = _Full()
        self._shown: str | None = None  # as long as nothing is new

    def append(self, x: float, values: Values) -> None:
        """One point of every series; an x without a value is left out. What is there from this x on goes: a resumed run
        repeats steps."""
        while self.x and self.x[-1] >= x:
            self._full, self._shown = _Full(), None
            for column in (self.x, *self.series.values()):
                column.pop()
        known = {name: value for name, value in values.items() if value is not None}
        if not known:
            return
        self._shown = None
        for name in (name for name in known if name not in self.series):
            self.series[name] = array("d", [NAN] * len(self.x))
        self.x.append(x)
        for name, column in self.series.items():
            column.append(known.get(name, NAN))

    def gap(self, x: float) -> None:
        """No line leads over x; of gaps that follow each other the first is enough."""
        if not self.x or x <= self.x[-1] or all(map(isnan, (column[-1] for column in self.series.values()))):
            return
        self._shown = None
        self.x.append(x)
        for column in self.series.values():
            column.append(NAN)

    def shown(self) -> str:
        """JSON: {"x": [...], "series": {name: [...]}}, at most WHOLE points and VALUES values, with null for a gap."""
        if self._shown is None:
            x, *series = map(list_of, zip(*self._pieces(), strict=True))
            self._shown = object_of({"x": x, "series": object_of(dict(zip(self.series, series, strict=True)))})
        return self._shown

    def _pieces(self) -> list[Points]:
        """The points that are shown, in pieces that follow each other. A bucket that is full is looked at once: a write
        takes as long at step 10,000 as at step 1,000."""
        count, most = len(self.x), min(WHOLE, VALUES // max(len(self.series), 1))
        if count <= most:
            return [_points(self._values(0, count))]
        buckets = max(most // _marks(len(self.series)), 1)
        size = 1 << (-(-count // buckets) - 1).bit_length()
        if (size, len(self.series)) != (self._full.size, self._full.series):
            self._full = _Full(size, len(self.series))
        begin, full = self._full.count, count // size * size
        if full > begin:
            self._full = replace(self._full, count=full, pieces=[*self._full.pieces, self._thinned(begin, full)])
        return [*self._full.pieces, *([self._thinned(full, count)] if count > full else [])]

    def _values(self, begin: int, end: int) -> NDArray[np.float64]:
        """[1 + S, N]: x and the series, of these points."""
        return np.array([np.frombuffer(column)[begin:end] for column in (self.x, *self.series.values())])

    def _thinned(self, begin: int, end: int) -> Points:
        values = self._values(begin, end)
        return _points(values[:, thinned(values[1:], self._full.size)])


@dataclass(frozen=True)
class _Full:
    """Of `series` series the buckets of `size` points that are full. count: the points that they are of."""

    size: int = 0
    series: int = 0
    count: int = 0
    pieces: Sequence[Points] = ()


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
    places = np.unique(np.concatenate([starts, ends, gaps, least.ravel(), most.ravel()]))
    return places[places < count]


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
