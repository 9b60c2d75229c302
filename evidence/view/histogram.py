"""A step's evidence as a histogram: the places that its template draws, an outline a group, filled where it is kept.

Legend: N = response tokens of a group, B = bins. Places are in the picture's own units, y downward.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evidence.records import Bools, Floats

WIDTH, HEIGHT = 480.0, 200.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 400.0, 12.0, 154.0  # of the axes; the legend is right of them
BOUND, NUM_BINS = 4.0, 40  # values beyond the bound, in nats, are in the outer bins
_FAMILIES = ("pos", "unguided")  # colours of the palette, in the order of the groups
_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # between the grid's lines, shares of tokens


@dataclass(frozen=True)
class Series:
    """One group: its name, its colour, and two SVG paths over the bins: all of its tokens, and the kept ones."""

    label: str
    family: str
    y: float  # of its line in the legend
    outline: str
    kept: str


@dataclass(frozen=True)
class Histogram:
    """Everything that histogram.svg.jinja draws. Ticks are (place, text)."""

    series: tuple[Series, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    size: tuple[float, float] = (WIDTH, HEIGHT)
    axes: tuple[float, float, float, float] = (LEFT, RIGHT, TOP, BOTTOM)


def histogram(groups: Mapping[str, tuple[Floats, Bools]]) -> Histogram:
    """name -> (e [N], m [N]), at most two groups: each bin's share of its group's tokens, and of those that m keeps.

    The kept ones are counted and not told from a threshold, so that any region is drawn as what it is.
    """
    shares = {label: _shares(values, kept) for label, (values, kept) in groups.items()}
    top = max([0.01, *(float(outline.max()) for outline, _ in shares.values())])
    step = next((step for step in _STEPS if top / step <= 4), _STEPS[-1])
    return Histogram(
        series=tuple(
            Series(label, family, TOP + 6 + 18 * row, _path(outline, top), _path(kept, top))
            for row, (family, (label, (outline, kept))) in enumerate(zip(_FAMILIES, shares.items(), strict=False))
        ),
        x_ticks=tuple((_x(value), f"{value:g}".replace("-", "\N{MINUS SIGN}")) for value in range(-4, 5)),
        y_ticks=tuple((_y(i * step, top), f"{i * step:.0%}") for i in range(int(top / step) + 1)),
    )


def _shares(values: Floats, kept: Bools) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[B] of all tokens, [B] of the kept ones; both of the group's N."""
    edges = np.linspace(-BOUND, BOUND, NUM_BINS + 1)
    inside = np.clip(values, -BOUND, BOUND)
    whole, part = (np.histogram(chosen, edges)[0] / max(values.size, 1) for chosen in (inside, inside[kept]))
    return whole, part


def _x(value: float) -> float:
    return round(LEFT + (value + BOUND) / (2 * BOUND) * (RIGHT - LEFT), 1)


def _y(share: float, top: float) -> float:
    return round(BOTTOM - share / top * (BOTTOM - TOP), 1)


def _path(shares_B: NDArray[np.float64], top: float) -> str:
    """Stairs from the left end of the axis to its right end, on the axis at both."""
    edges = np.linspace(-BOUND, BOUND, NUM_BINS + 1)[1:]
    stairs = (f"V{_y(float(share), top):g}H{_x(float(edge)):g}" for share, edge in zip(shares_B, edges, strict=True))
    return f"M{LEFT:g} {BOTTOM:g}{''.join(stairs)}V{BOTTOM:g}"
