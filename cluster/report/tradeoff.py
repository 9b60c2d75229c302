"""The trade-off of a sweep as one picture: self-name against the name in capability answers, and against capability.

A colour is a value of the first thing that is varied, and its line joins the means of the combinations that have it, in
the order of the sweep's file. A small point is a run's last probe, a large one the mean over a combination's seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cluster.report import pages
from cluster.report.charts import INK, LABEL_HEIGHT, MUTED
from cluster.report.svg import Picture, colour, render, style
from cluster.report.sweep import Key, Whole
from evidence.files import write_whole
from evidence.rates import RATES

PAGE, PICTURE = "sweep.html", "sweep.svg"
GAIN, COSTS = "selfname", {"side_effect": "less is better", "capability": "more is better"}
FAMILIES = ("unguided", "pos", "neg", "near_zero", "all", "verifier", "soft", "base")
MARKERS = "osD^"  # of those beyond so many colours
WIDTH, HEIGHT, COLUMNS = 9.2, 4.0, 4  # inches without the legend; columns of the legend


@dataclass(frozen=True)
class Cell:
    """One combination. names: of the values beside the first. shares: by seed and rate."""

    names: str
    shares: Mapping[int, Mapping[str, float]]

    def mean(self, rate: str) -> float:
        """Over the seeds."""
        return fmean(own[rate] for own in self.shares.values())

    def line(self) -> str:
        """The means in words."""
        return ", ".join(f"{RATES[rate].label} {self.mean(rate):.2f}" for rate in (GAIN, *COSTS))


Curves = Mapping[str, Sequence[Cell]]  # by the first value


def write_tradeoff(folder: Path, varied: Sequence[str], runs: Mapping[Key, Whole]) -> Path | None:
    """Writes FOLDER/sweep.html, and its picture on white paper as sweep.svg; returns the former. None, and nothing is
    written, where no run has the three rates. varied: what is; runs: in the order of the sweep's file."""
    found = curves(varied, runs)
    if not found:
        return None
    what = varied[0] if varied else "sweep"
    count = sum(len(cell.shares) for cells in found.values() for cell in cells)
    picture = draw(found, alt_of(found, count))
    write_whole(folder / PICTURE, picture.standalone)
    text = pages.render("sweep.html.jinja", name=folder.name, what=what, count=count, picture=picture, curves=found)
    write_whole(folder / PAGE, text)
    return folder / PAGE


def curves(varied: Sequence[str], runs: Mapping[Key, Whole]) -> dict[str, list[Cell]]:
    """Of the runs whose last probe has the three rates."""
    shares: dict[tuple[str, ...], dict[int, dict[str, float]]] = {}
    for (cell, seed), run in runs.items():
        rates = run.last.rates
        if all(rate in rates for rate in (GAIN, *COSTS)):
            shares.setdefault(cell, {})[seed] = {rate: rates[rate].share for rate in (GAIN, *COSTS)}
    found: dict[str, list[Cell]] = {}
    for cell, own in shares.items():
        found.setdefault(cell[0] if varied else "all", []).append(Cell(" ".join(cell[1:]), own))
    return found


def alt_of(found: Curves, count: int) -> str:
    """The picture in words."""
    said = "; ".join(
        f"{name} {cell.names}".strip() + f": {cell.line()}" for name, cells in found.items() for cell in cells
    )
    costs = " and against ".join(RATES[cost].label for cost in COSTS)
    return f"{RATES[GAIN].label} against {costs}, {count} runs. Means over seeds: {said}."


def draw(found: Curves, alt: str) -> Picture:
    """Two panels, which share the vertical axis."""
    titles: dict[str, str] = {}
    top = 0.3 + LABEL_HEIGHT * 1.5 * ceil((len(found) + 2) / COLUMNS)
    height = HEIGHT + top
    with style():
        figure = Figure(figsize=(WIDTH, height))
        for place, cost in enumerate(COSTS):
            left = (0.6 + place * WIDTH / 2) / WIDTH
            axes = figure.add_axes((left, 0.55 / height, 0.5 - 0.9 / WIDTH, 1 - (0.55 + top) / height))
            for index, (name, cells) in enumerate(found.items()):
                _draw_curve(axes, cost, name, cells, index, titles)
            axes.set(xlabel=f"{RATES[cost].label} ({COSTS[cost]})", ylim=(0, 1))
            axes.margins(x=0.12)
            axes.set_xlim(left=max(0.0, axes.get_xlim()[0]))
            if place == 0:
                axes.set_ylabel(f"{RATES[GAIN].label} (more is better)")
        figure.legend(
            handles=_handles(found), loc="upper left", ncols=COLUMNS, fontsize=9, labelcolor=INK, handletextpad=0.3
        )
        return render(figure, "tradeoff", titles, alt)


def _draw_curve(axes: Axes, cost: str, name: str, cells: Sequence[Cell], index: int, titles: dict[str, str]) -> None:
    shade, marker = _look(index)
    means = [(cell.mean(cost), cell.mean(GAIN)) for cell in cells]
    axes.plot(*zip(*means, strict=True), color=shade, linewidth=1.4, alpha=0.7, clip_on=False)
    for cell, mean in zip(cells, means, strict=True):
        label = f"{name} {cell.names}".strip()
        points = [(4.0, 0.55, (own[cost], own[GAIN]), f"{label}, seed {seed}") for seed, own in cell.shares.items()]
        for size, alpha, at, title in [*points, (8.0, 1.0, mean, f"{label}, mean of {len(points)}")]:
            gid = f"t{len(titles)}"
            titles[gid] = f"{title}: {RATES[GAIN].label} {at[1]:.2f}, {RATES[cost].label} {at[0]:.2f}"
            axes.plot(
                [at[0]], [at[1]], marker=marker, markersize=size, alpha=alpha, color=shade, linestyle="none",
                clip_on=False, gid=gid, zorder=3,
            )  # fmt: skip
        if cell.names:
            axes.annotate(cell.names, mean, (6, 4), textcoords="offset points", fontsize=8.5, color=shade)


def _look(index: int) -> tuple[str, str]:
    """Colour and marker."""
    return colour(FAMILIES[index % len(FAMILIES)]), MARKERS[index // len(FAMILIES) % len(MARKERS)]


def _handles(found: Curves) -> list[Line2D]:
    looks = [(name, *_look(index), 8.0) for index, name in enumerate(found)]
    shown = [*looks, ("a run", MUTED, "o", 4.0), ("the mean over seeds", MUTED, "o", 8.0)]
    return [
        Line2D([], [], color=shade, marker=marker, markersize=size, linestyle="none", label=label)
        for label, shade, marker, size in shown
    ]
