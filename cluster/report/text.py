"""How a number is written: for a table, for a hover title, for summary.json."""

from collections.abc import Iterable
from typing import Any

from cluster.report.numbers import Number, Source
from cluster.report.tables import Cell, Column
from evidence.view.pages import figure


def number_text(number: Number, digits: int = 2, signed: bool = False, step: bool = False) -> str:
    """0.57 [0.47, 0.67], and the step where it matters."""
    text = f"{figure(number.value, digits, signed)} {interval_text(number, digits, signed)}".rstrip()
    return f"{text}, step {number.steps[0]}" if step and number.steps else text


def interval_text(number: Number, digits: int = 2, signed: bool = False) -> str:
    """[0.47, 0.67]; empty for a number without an interval."""
    if number.interval is None:
        return ""
    low, high = number.interval
    return f"[{figure(low, digits, signed)}, {figure(high, digits, signed)}]"


def cell_text(cell: Cell, column: Column) -> str:
    """A cell as plain text."""
    if cell is None:
        return "" if column.kind == "published" else "-"
    if isinstance(cell, str):
        return cell
    if isinstance(cell, Number):
        return number_text(cell, column.digits, column.signed, column.step)
    return figure(cell, column.digits, column.signed)


def origin(number: Number) -> str:
    """Where a number comes from, in one line: its count, then runs, file and steps."""
    return f"{_amount(number)}; {_places(number.sources)}"


def _amount(number: Number) -> str:
    if number.count is not None:
        return f"{number.count} of {number.n}"
    return f"{number.n} answers" if number.interval is not None else f"mean over {number.n}"


def _places(sources: Iterable[Source]) -> str:
    found: dict[tuple[str, str], list[int]] = {}
    for source in sources:
        found.setdefault((source.run, source.file), []).append(source.step)
    return ", ".join(
        f"{run}/{file} step {', '.join(str(step) for step in sorted(set(steps)))}"
        for (run, file), steps in found.items()
    )


def number_json(number: Number | None) -> dict[str, Any] | None:
    """Every part of a number, for summary.json."""
    if number is None:
        return None
    return {
        "value": number.value,
        "count": number.count,
        "n": number.n,
        "interval": None if number.interval is None else list(number.interval),
        "sources": [{"run": s.run, "file": s.file, "step": s.step} for s in number.sources],
    }


def cell_json(cell: Cell, column: Column) -> Any:
    """A table's cell for summary.json."""
    if isinstance(cell, Number):
        return number_json(cell)
    return {"published": cell} if column.kind == "published" else cell
