"""Two kinds of chart: dots with intervals a row, and lines over steps. Data in, SVG out."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cluster.report.svg import Picture, colour, render, style
from evidence.view.pages import PALETTE

LABEL_HEIGHT = 0.155  # inches, of a line of text
WIDTH = 4.8  # inches; a page shows two charts side by side, or one on a phone
INK, MUTED, GRID = (PALETTE[name][0] for name in ("ink", "muted", "grid"))
# Kind of mark -> (marker, filled, size, name in the legend).
MARKS: dict[str, tuple[str, bool, float, str]] = {
    "final": ("o", True, 6.5, "ours, final, 95% interval"),
    "best": (">", True, 5.5, "ours, best probe"),
    "published": ("D", False, 5.5, "published"),
}


@dataclass(frozen=True)
class Mark:
    """One figure of a row."""

    kind: str
    value: float
    title: str
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Row:
    """A row of a dot chart: its label, its marks, and the figure in words at its right end."""

    label: str
    family: str
    marks: tuple[Mark, ...]
    text: str = ""


@dataclass(frozen=True)
class Point:
    """One point of a line."""

    x: float
    y: float
    title: str = ""
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Line:
    """A line with its label, if any, at its end; `marked` lines show their points, `hollow` ones only those."""

    label: str
    family: str
    points: tuple[Point, ...]
    dashed: bool = False
    marked: bool = False
    hollow: bool = False


Titles = dict[str, str]  # an artist's id -> its hover title


def _tag(titles: Titles, title: str) -> str:
    """A new id, whose artist gets this hover title."""
    gid = f"t{len(titles)}"
    titles[gid] = title
    return gid


def dots(
    name: str, rows: Sequence[Row], xlabel: str, xlim: tuple[float, float], alt: str, zero: bool = False
) -> Picture:
    """A row each: final with its interval, best, published, on one axis. `zero` draws the line of no change."""
    titles: Titles = {}
    with style():
        figure = Figure(figsize=(WIDTH, 0.95 + 0.3 * len(rows)))
        axes = figure.add_axes(_frame(figure, left=2.15, right=0.6, bottom=0.5, top=0.4))
        for y, row in enumerate(rows):
            _draw_row(axes, y, row, titles)
        axes.set(xlim=xlim, ylim=(len(rows) - 0.4, -0.6), xlabel=xlabel)
        axes.set_yticks(range(len(rows)), [row.label for row in rows], fontsize=9)
        axes.tick_params(axis="y", pad=9)
        for tick, row in zip(axes.get_yticklabels(), rows, strict=True):
            tick.set_color(INK if any(mark.kind != "published" for mark in row.marks) else MUTED)
        axes.grid(axis="y", visible=False)
        if zero:
            axes.axvline(0, color=MUTED, linewidth=1)
        _legend(figure, {mark.kind for row in rows for mark in row.marks})
        return render(figure, name, titles, alt)


def _frame(figure: Figure, left: float, right: float, bottom: float, top: float) -> tuple[float, float, float, float]:
    """Axes position from margins in inches."""
    width, height = figure.get_size_inches()
    return left / width, bottom / height, (width - left - right) / width, (height - bottom - top) / height


def _draw_row(axes: Axes, y: float, row: Row, titles: Titles) -> None:
    shade = colour(row.family)
    for mark in row.marks:
        marker, filled, size, _ = MARKS[mark.kind]
        if mark.interval:
            axes.plot(mark.interval, (y, y), color=shade, linewidth=2.2, solid_capstyle="round", clip_on=False)
        edge = INK if mark.kind == "published" else shade
        axes.plot(
            [mark.value], [y], marker=marker, markersize=size, color=shade, markeredgecolor=edge, clip_on=False,
            markerfacecolor=shade if filled else "none", linestyle="none", gid=_tag(titles, mark.title), zorder=3,
        )  # fmt: skip
    axes.annotate(row.text, (1.03, y), xycoords=("axes fraction", "data"), va="center", fontsize=9)


def _legend(figure: Figure, kinds: set[str]) -> None:
    handles = [
        Line2D([], [], marker=marker, markersize=size, linestyle="none", color=MUTED, label=text,
               markeredgecolor=INK if kind == "published" else MUTED, markerfacecolor=MUTED if filled else "none")
        for kind, (marker, filled, size, text) in MARKS.items()
        if kind in kinds
    ]  # fmt: skip
    figure.legend(
        handles=handles, loc="upper left", ncols=3, fontsize=8.5, handletextpad=0.1, columnspacing=0.9, borderpad=0.2,
        labelcolor=MUTED,
    )  # fmt: skip


def lines(
    name: str,
    drawn: Sequence[Line],
    xlabel: str,
    alt: str,
    ylim: tuple[float, float] | None = None,
) -> Picture:
    """Lines over a common axis, each with its label at its right end, in its own colour. Many lines go without their
    intervals, which would hide each other."""
    height = max(2.8, 0.62 + LABEL_HEIGHT * len(drawn))
    titles: Titles = {}
    with style():
        figure = Figure(figsize=(WIDTH, height))
        axes = figure.add_axes(_frame(figure, left=0.5, right=1.0, bottom=0.5, top=0.12))
        for line in drawn:
            _draw_line(axes, line, titles, intervals=len(drawn) <= 6)
        axes.set(xlabel=xlabel, ylim=ylim)
        axes.margins(x=0.02)
        axes.grid(axis="x", visible=False)
        _end_labels(axes, [line for line in drawn if line.points and line.label], height - 0.62)
        return render(figure, name, titles, alt)


def _draw_line(axes: Axes, line: Line, titles: Titles, intervals: bool) -> None:
    x, y = [p.x for p in line.points], [p.y for p in line.points]
    shade = colour(line.family)
    if not line.hollow:
        axes.plot(x, y, color=shade, linewidth=1.6, linestyle=(0, (4, 2)) if line.dashed else "-", clip_on=False)
    for point in line.points if line.marked else ():
        if point.interval and intervals:
            axes.plot((point.x, point.x), point.interval, color=shade, linewidth=1.2, alpha=0.55, clip_on=False)
        axes.plot(
            [point.x], [point.y], marker="D" if line.hollow else "o", markersize=4.5, linestyle="none", color=shade,
            markerfacecolor="none" if line.hollow else shade, gid=_tag(titles, point.title), clip_on=False, zorder=3,
        )  # fmt: skip


def _end_labels(axes: Axes, drawn: Sequence[Line], height: float) -> None:
    """Each line's label at its end, moved apart where they would overlap."""
    if not drawn:
        return
    low, high = axes.get_ylim()
    gap = LABEL_HEIGHT * (high - low) / height  # in data units
    places = spread([line.points[-1].y for line in drawn], gap, low, high)
    for line, y in zip(drawn, places, strict=True):
        axes.annotate(
            line.label, (1.03, y), xycoords=("axes fraction", "data"), va="center", fontsize=9,
            color=colour(line.family), annotation_clip=False,
        )  # fmt: skip


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """The places nearest to `wanted` between low and high, in the same order and at least `gap` apart: neighbours that
    would overlap share a block around their mean."""

    def centre(block: list[int]) -> float:
        reach = gap * (len(block) - 1) / 2
        mean = sum(wanted[index] for index in block) / len(block)
        return max(min(mean, high - reach), low + reach)

    blocks: list[list[int]] = []
    for index in sorted(range(len(wanted)), key=lambda index: wanted[index]):
        blocks.append([index])
        while len(blocks) > 1 and centre(blocks[-1]) - centre(blocks[-2]) < gap * len(blocks[-2] + blocks[-1]) / 2:
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    places = [0.0] * len(wanted)
    for block in blocks:
        for rank, index in enumerate(block):
            places[index] = centre(block) + gap * (rank - (len(block) - 1) / 2)
    return places
