"""Series that grow while a run lasts, and thinned to what a chart can show."""

from array import array
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

BUCKETS = 60  # of a thinned chart
WHOLE = 480  # points up to which a chart is shown as it is
NAN = float("nan")

Values = Mapping[str, float | None]


class Columns:
    """The series of one chart over a common x; None is a gap, and so is what a series had not before it came."""

    def __init__(self) -> None:
        self.x = array("d")
        self.series: dict[str, array[float]] = {}
        self._size, self._kept = 0, _NOWHERE  # points a bucket, and what is shown of the buckets that are full
        self._shown: dict[str, Any] | None = None  # as long as nothing is new

    def append(self, x: float, values: Values) -> None:
        """One point of every series; an x without a value is left out. What is there from this x on goes: a resumed run
        repeats steps."""
        while self.x and self.x[-1] >= x:
            self._size, self._shown = 0, None
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

    def shown(self) -> dict[str, Any]:
        """{"x": [...], "series": {name: [...]}}, at most a few hundred points, with null for a gap."""
        if self._shown is None:
            kept = self._places()
            series = {n: _gaps(rounded(np.frombuffer(own)[kept], 5).tolist()) for n, own in self.series.items()}
            self._shown = {"x": rounded(np.frombuffer(self.x)[kept], 13).tolist(), "series": series}
        return self._shown

    def _places(self) -> NDArray[np.intp]:
        """Of the points that are shown. A bucket that is full is looked at once: a write takes as long at step 10,000
        as at step 1,000."""
        count = len(self.x)
        if count <= WHOLE:
            return np.arange(count)
        size = 1 << (-(-count // BUCKETS) - 1).bit_length()
        if size != self._size:
            self._size, self._kept = size, _NOWHERE
        begin, full = self._kept[-1] + 1 if len(self._kept) else 0, count // size * size
        y = np.array([np.frombuffer(column)[begin:] for column in self.series.values()])
        if full > begin:
            self._kept = np.concatenate([self._kept, begin + thinned(y[:, : full - begin], size)])
        return np.concatenate([self._kept, full + thinned(y[:, full - begin :], size)])


_NOWHERE: NDArray[np.intp] = np.array([], np.intp)


def thinned(y: NDArray[np.float64], size: int) -> NDArray[np.intp]:
    """Places [K] of [S, N] that a chart shows: the first and last of each bucket of `size` points, and where each
    series is least and greatest in it, so that no peak is lost."""
    count = y.shape[1]
    starts = np.arange(0, count, size)
    padded = np.full((len(y), len(starts) * size), NAN)
    padded[:, :count] = y
    buckets = padded.reshape(len(y), len(starts), size)
    least = np.where(np.isnan(buckets), np.inf, buckets).argmin(axis=2) + starts
    most = np.where(np.isnan(buckets), -np.inf, buckets).argmax(axis=2) + starts
    ends = np.minimum(starts + size, count) - 1
    places = np.unique(np.concatenate([starts, ends, least.ravel(), most.ravel()]))
    return places[places < count]


def rounded(values: NDArray[np.float64], digits: int) -> NDArray[np.float64]:
    """Values to so many significant digits: a chart shows no more, and a file is half as long."""
    with np.errstate(divide="ignore"):
        exponent = np.floor(np.log10(np.abs(values)))
    scale = 10.0 ** (digits - 1 - np.where(np.isfinite(exponent), exponent, 0))
    return np.round(values * scale) / scale


def _gaps(values: list[float]) -> list[float | None]:
    """JSON has no NaN and no infinity."""
    return [value if -1e308 < value < 1e308 else None for value in values]
