"""Which charts a task gets, and what is drawn on each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cluster.report.charts import Line, Mark, Point, Row, dots, lines
from cluster.report.groups import Group, Pool
from cluster.report.numbers import Number, difference
from cluster.report.published import Published
from cluster.report.svg import Picture
from cluster.report.tables import SWEEP
from cluster.report.text import number_text, origin
from evidence.view.pages import figure


@dataclass(frozen=True)
class Chart:
    """A picture with its caption. `key` is unique in a report and names the file."""

    key: str
    title: str
    note: str
    picture: Picture


Theirs = Callable[[str], float | None]  # an arm's published figure


def _mark(kind: str, number: Number | None) -> list[Mark]:
    if number is None:
        return []
    title = f"{number_text(number)}: {origin(number)}"
    return [Mark(kind, number.value, title, number.interval if kind == "final" else None)]


def _published_mark(value: float | None) -> list[Mark]:
    return [] if value is None else [Mark("published", value, f"published: {figure(value, 3)}")]


def _row(pool: Pool, final: Number | None, best: Number | None, published: list[Mark], signed: bool = False) -> Row:
    text = "not run" if final is None else figure(final.value, 2, signed)
    marks = (*_mark("best", best), *_mark("final", final), *published)
    return Row(f"{pool.arm.label}  {pool.arm.code}", pool.arm.family, marks, text)


def _limits(rows: Sequence[Row], least: float) -> tuple[float, float]:
    """From 0 to what is drawn, in tenths."""
    ends = [end for row in rows for mark in row.marks for end in (mark.value, *(mark.interval or ()))]
    return 0.0, max(least, *(min(1.0, int(end * 10 + 1) / 10) for end in ends)) if ends else least


def _around_zero(rows: Sequence[Row]) -> tuple[float, float]:
    ends = [abs(end) for row in rows for mark in row.marks for end in (mark.value, *(mark.interval or ()))]
    bound = max([0.1, *(int(end * 20 + 1) / 20 for end in ends)])
    return -bound, bound


def rate_chart(
    group: Group, key: str, rate: str, pools: Sequence[Pool], published: Theirs, xlabel: str, title: str, note: str
) -> Chart:
    """A rate of each arm: final with its interval, best, published."""
    rows = [_row(pool, pool.final(rate), pool.best(rate), _published_mark(published(pool.arm.code))) for pool in pools]
    return _chart(group, key, title, note, dots(f"{group.task}-{key}", rows, xlabel, _limits(rows, 0.5), title))


def change_chart(group: Group, key: str, rate: str, published: Theirs, xlabel: str, title: str, note: str) -> Chart:
    """Final minus base model of each arm, with Newcombe's interval."""
    before = group.base.final(rate)
    rows = [
        _row(pool, difference(pool.final(rate), before), None, _published_mark(published(pool.arm.code)), signed=True)
        for pool in group.rows()
        if pool.runs or published(pool.arm.code) is not None
    ]
    picture = dots(f"{group.task}-{key}", rows, xlabel, _around_zero(rows), title, zero=True)
    return _chart(group, key, title, note, picture)


def _chart(group: Group, key: str, title: str, note: str, picture: Picture) -> Chart:
    return Chart(f"{group.task}-{key}", title, note, picture)


def _point(x: float, what: str, number: Number) -> Point:
    return Point(x, number.value, f"{what}: {number_text(number)}; {origin(number)}", number.interval)


def _probe_line(pool: Pool, rate: str) -> Line:
    found = [(step, number) for step in pool.probe_steps() if (number := pool.rate(rate, step))]
    points = tuple(_point(step, f"{pool.arm.code} at step {step}", number) for step, number in found)
    return Line(pool.arm.code, pool.arm.family, points, pool.arm.setting.context == "user", marked=True)


def _train_line(pool: Pool, name: str) -> Line:
    found = [(step, number) for step in pool.train_steps() if (number := pool.diagnostic(name, step=step))]
    points = tuple(Point(step, number.value) for step, number in found)
    return Line(pool.arm.code, pool.arm.family, points, pool.arm.setting.context == "user")


def _published_line(pool: Pool, value: float) -> Line:
    """A diamond at the end of an arm's line."""
    points = tuple(
        Point(step, value, f"published {figure(value, 3)}: {pool.arm.code}") for step in pool.train_steps()[-1:]
    )
    return Line("", pool.arm.family, points, marked=True, hollow=True)


def curve_chart(group: Group, key: str, rate: str, title: str, note: str) -> Chart:
    """A probe's rate over the updates made, an arm a line."""
    drawn = [_probe_line(pool, rate) for pool in group.pools]
    top = max([0.5, *(min(1.0, point.interval[1]) for line in drawn for point in line.points if point.interval)])
    picture = lines(f"{group.task}-{key}", drawn, "updates", title, (0.0, top))
    return _chart(group, key, title, f"{note} {_DASHES}".strip(), picture)


def train_chart(group: Group, name: str, title: str, note: str, published: Theirs = lambda arm: None) -> Chart:
    """A diagnostic over the training steps, an arm a line, guided and plain rollouts together; published at the end."""
    drawn = [_train_line(pool, name) for pool in group.pools]
    drawn += [_published_line(pool, value) for pool in group.pools if (value := published(pool.arm.code)) is not None]
    key = name.replace("_", "-")
    picture = lines(f"{group.task}-{key}", drawn, "updates", title)
    return _chart(group, key, title, f"{note} {_DASHES}".strip(), picture)


_DASHES = "Dashed: the context is rendered in the user message."


def sweep_chart(group: Group, published: Published) -> Chart | None:
    """Self-name against the guided fraction, full EDGE-OPD with r in the user message; None without two of its arms."""
    pools = [pool for code in SWEEP if (pool := group.pool(code)).runs]
    if len(pools) < 2:
        return None
    ours = tuple(
        _point(pool.arm.setting.guided, pool.arm.code, number) for pool in pools if (number := pool.final("selfname"))
    )
    best = published.value("best_over_checkpoints", "N3u", "selfname_identity")
    theirs = (Point(0.5, best, f"published {figure(best, 3)}, best over checkpoints"),) if best is not None else ()
    drawn = [Line("ours, final", "pos", ours, marked=True), Line("published", "ink", theirs, marked=True, hollow=True)]
    title = "How many rollouts need to be guided"
    picture = lines(f"{group.task}-sweep", drawn, "guided fraction", title, (0.0, 1.0))
    note = f"Self-name at the last probe with 95% intervals. {published.statements['sweep']}"
    return _chart(group, "sweep", title, note, picture)
