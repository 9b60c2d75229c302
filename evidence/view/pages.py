"""Templates to text: one environment, everything escaped, styles inlined."""

from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from evidence.view.numbers import Number
from evidence.view.svg import PALETTE
from evidence.view.text import cell_text, figure, interval_text, number_text, origin

MARKS = {"shown": "✓", "refuted": "✗", "undecided": "…", "not run": "–"}


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("evidence.view", "templates"),
        autoescape=lambda name: name is not None and name.endswith(".html.jinja"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["md"] = lambda text: str(text).replace("|", "\\|").replace("\n", " ")
    environment.globals.update(
        cell_text=cell_text,
        figure=figure,
        interval_text=interval_text,
        number_text=number_text,
        origin=origin,
        marks=MARKS,
        is_number=lambda cell: isinstance(cell, Number),
        has_ours=lambda row: any(isinstance(cell, Number) for cell in row.values()),
    )
    return environment


def render(template: str, **values: Any) -> str:
    """The text of a template of this package. In HTML every value is escaped but for pictures made here."""
    return _environment().get_template(template).render(css=stylesheet(), **values)


@cache
def stylesheet() -> str:
    """The style of both kinds of page, with the palette for light and dark."""
    light, dark = (" ".join(f"--c-{family}: {pair[index]};" for family, pair in PALETTE.items()) for index in (0, 1))
    text = files("evidence.view").joinpath("templates/style.css").read_text(encoding="utf-8")
    return text.replace("{{ light }}", light).replace("{{ dark }}", dark)
