"""What pages of this project share: one way to render a template, one style, one palette, one way to write a figure."""

from functools import cache
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined

MINUS = "\N{MINUS SIGN}"
# Family -> (on a light page, on a dark one). Hues of Okabe and Ito that a colour-blind reader tells apart; each line
# also carries its own label.
PALETTE = {
    "ink": ("#1f2328", "#e8e6e1"),
    "muted": ("#6a6f76", "#a09d96"),
    "grid": ("#dcdfe3", "#3a3a38"),
    "base": ("#85898f", "#8d8f94"),
    "unguided": ("#0072b2", "#4aa8e0"),
    "all": ("#c08400", "#e69f00"),
    "soft": ("#7d7a1f", "#bdb84a"),
    "pos": ("#d55e00", "#ff8138"),
    "neg": ("#00916a", "#1fb98d"),
    "near_zero": ("#b55f94", "#dc8fbf"),
    "verifier": ("#5a4fcf", "#9a92f5"),
}


def environment(package: str) -> Environment:
    """The templates of a package, with `css` and `figure` known to each. In HTML and SVG every value is escaped."""
    made = Environment(
        loader=PackageLoader(package, "templates"),
        autoescape=lambda name: name is not None and name.endswith((".html.jinja", ".svg.jinja")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.globals.update(css=stylesheet(), figure=figure)
    return made


@cache
def stylesheet() -> str:
    """The style of every page, with the palette for light and dark."""
    light, dark = (" ".join(f"--c-{family}: {pair[index]};" for family, pair in PALETTE.items()) for index in (0, 1))
    text = files("evidence.view").joinpath("templates/style.css").read_text(encoding="utf-8")
    return text.replace("{{ light }}", light).replace("{{ dark }}", dark)


def figure(value: float, digits: int = 2, signed: bool = False) -> str:
    """A figure with a fixed number of digits, a real minus sign, and no minus before zero."""
    rounded = round(value, digits) + 0.0
    text = f"{rounded:+.{digits}f}" if signed else f"{rounded:.{digits}f}"
    return text.replace("-", MINUS)
