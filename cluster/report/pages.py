"""The report's templates, with what they ask of a table's cell."""

from functools import cache
from typing import Any

from jinja2 import Environment

from cluster.report.numbers import Number
from cluster.report.text import cell_text, interval_text, number_text, origin
from evidence.view.pages import environment

MARKS = {"shown": "✓", "refuted": "✗", "undecided": "…", "not run": "–"}


@cache
def _environment() -> Environment:
    made = environment("cluster.report")
    made.filters["md"] = lambda text: str(text).replace("|", "\\|").replace("\n", " ")
    made.globals.update(
        cell_text=cell_text,
        interval_text=interval_text,
        number_text=number_text,
        origin=origin,
        marks=MARKS,
        is_number=lambda cell: isinstance(cell, Number),
        has_ours=lambda row: any(isinstance(cell, Number) for cell in row.values()),
    )
    return made


def render(template: str, **values: Any) -> str:
    """The text of a template of this package. In HTML every value is escaped but for pictures made here."""
    return _environment().get_template(template).render(**values)
