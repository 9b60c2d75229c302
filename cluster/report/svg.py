"""Matplotlib figures as SVG text: equal bytes for equal figures, colours that a page can turn dark, hover titles."""

import io
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from evidence.view.pages import PALETTE

_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "edge-opd",
    "font.family": ["DejaVu Sans"],  # measured with matplotlib's own font, so that every machine gives one layout
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.edgecolor": PALETTE["grid"][0],
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": PALETTE["grid"][0],
    "grid.linewidth": 0.7,
    "text.color": PALETTE["ink"][0],
    "axes.labelcolor": PALETTE["muted"][0],
    "xtick.color": PALETTE["muted"][0],
    "ytick.color": PALETTE["muted"][0],
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}
_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}
_FONTS = "font-family: system-ui, -apple-system, 'Segoe UI', sans-serif"


@dataclass(frozen=True)
class Picture:
    """One chart twice: `inline` takes its colours from the page, `standalone` is a file on white paper."""

    inline: str
    standalone: str


def colour(family: str) -> str:
    """The light colour of a family; `other` is ink."""
    return PALETTE.get(family, PALETTE["ink"])[0]


def style() -> AbstractContextManager[None]:
    """The settings every chart is drawn under, whatever the user's own matplotlib settings are."""
    default: dict[Any, Any] = {key: value for key, value in matplotlib.rcParamsDefault.items() if key != "backend"}
    return matplotlib.rc_context(default | _SETTINGS)


def render(figure: Figure, name: str, titles: Mapping[str, str], alt: str) -> Picture:
    """The figure as SVG. `titles`: gid of an artist -> its hover title. `name` keeps ids apart on one page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=_NO_METADATA)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for gid, title in titles.items():
        text = text.replace(f'<g id="{gid}">', f'<g id="{gid}"><title>{escape(title)}</title>')
    text = re.sub(r"font-family: [^;\"]*", _FONTS, text)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    text = re.sub(r"(?m)[ \t]+$", "", text)
    label = f' role="img" aria-label="{escape(alt)}"'
    return Picture(_inline(text, label), _standalone(text, label))


def _inline(text: str, label: str) -> str:
    for family, (light, _) in PALETTE.items():
        text = text.replace(light, f"var(--c-{family})")
    return re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*"', rf"<svg{label} \1", text, count=1)


def _standalone(text: str, label: str) -> str:
    paper = '<rect width="100%" height="100%" fill="#ffffff"/>'
    head, rest = text.split(">", 1)
    return f"{head}{label}>{paper}{rest}"
