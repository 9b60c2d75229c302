r"""Is an answer a number that is written out, or still something to work out? By its text alone: to computer algebra
3 + 4 and 7 are the same."""

import re
from enum import Enum
from math import gcd


class Written(Enum):
    """How a number is written."""

    WHOLE = "in digits, without a fraction"
    OTHER = "a decimal fraction, a fraction in lowest terms, a mixed number, or a power of ten with a factor"


_SPACE = re.compile(r"\\[,;:! ]|\\q?quad(?![a-zA-Z])|~|\s+")
_GAP = re.compile(r"(?<!,) ")  # 1, 234 are two numbers
_DRESS = re.compile(r"\\(?:left|right|displaystyle)(?![a-zA-Z])|\\?\$")
NAMED = re.compile(r"^.*=", re.DOTALL)  # x = 7, and what was worked out before the 7
_SHOWN = re.compile(r"\\(?:text|math|mbox|boxed)[a-z]*\{([^{}]*)\}")  # its content, in some type
_PAIR = re.compile(r"^[({]([^(){}]*)[)}]$")
# Words, and what is written like one; never a sign or a command that stands for something to do.
_UNIT = re.compile(r"(?> *(?>\\?%|\^\{?\\circ\}?|°|\\degree|/?[a-zA-Z]++(?:\^(?:\d|\{-?\d\}))?))+$")
_DIGITS = r"(?:\d{1,3}(?:(?:,|\{,\})\d{3})+|\d+)"
_WHOLE = re.compile(rf"{_DIGITS}(?:\.0*)?")
_DECIMAL = re.compile(rf"{_DIGITS}?\.\d+")
_FRACTION = re.compile(r"(\d+)?(?:\\[dt]?frac(?:\{(-?\d+)\}|(\d))(?:\{(\d+)\}|(\d))|(?<!\d)(\d+)/(\d+))")
_POWER = re.compile(r"(?:[1-9](?:\.\d+)?(?:\\times|\\cdot|×|\*))?10\^(?:\{-?\d+\}|\d)|[1-9](?:\.\d+)?[eE][+-]?\d+")
_CANCELS = re.compile(r"(?<![a-zA-Z])([a-zA-Z]+)/\1(?![a-zA-Z])")  # which looks like a unit, and is 1
# What parts of a list, a tuple, a set, an interval or a matrix stand between, and what surrounds them.
_OF_ALL = re.compile(r"^[^=]*(?:=|\\in(?![a-z]))(?= ?(?:\\\{|[(\[]))")  # (x, y) = (1, 2)
_BETWEEN = re.compile(
    r"(?<!\{),|;|\\cup|\\\\|&|[<>≤≥]|\\(?:[lg]t|[lg]e|ne)q?(?:slant)?(?![a-z])|(?<![a-z\\])(?:and|or)(?![a-z])"
    r"|\\text *\{ *(?:and|or) *\}|\\(?:begin|end)\{[a-z]*matrix\}"
)
_OPENS = re.compile(r"^(?:\\\{|\\pm|±|[(\[ ])+")
_CLOSES = re.compile(r"(?:\\\}|[)\] ])+$")
_NOTHING_TO_DO = re.compile(r"[a-zA-Z]|[+-]?(?:\\infty|∞)")  # the x of 1 < x < 2, and an open end


def written(answer: str) -> Written | None:
    """How the number that an answer is, with a name before it or a unit after it, is written; None where it is none, or
    has something left to work out."""
    number = _bare(answer)
    if _CANCELS.search(NAMED.sub("", answer)):
        return None
    if _WHOLE.fullmatch(number):
        return Written.WHOLE
    if _DECIMAL.fullmatch(number) or _POWER.fullmatch(number) or _in_lowest_terms(number):
        return Written.OTHER
    return None


def parts(answer: str) -> list[Written | None]:
    """How each part of a list, a tuple, a set, an interval or a matrix is written; of anything else, the whole."""
    found = map(_part, pieces(answer))
    return [written(part) for part in found if part and not _NOTHING_TO_DO.fullmatch(part)]


def pieces(answer: str) -> list[str]:
    """The parts of several, with what is left of the brackets around them; of anything else, the whole."""
    return _BETWEEN.split(_OF_ALL.sub("", _plain(answer)))


def _part(part: str) -> str:
    part = _CLOSES.sub("", _OPENS.sub("", part))
    if part.count("{") != part.count("}"):  # the first or the last one of {1, 2}
        part = part.removeprefix("{") if part.count("{") > part.count("}") else part.removesuffix("}")
    return part.strip()


def _plain(answer: str) -> str:
    return _SPACE.sub(" ", _DRESS.sub("", answer)).strip()


def _bare(answer: str) -> str:
    bare = _plain(NAMED.sub("", answer))
    while (shown := _SHOWN.sub(r" \1", bare)) != bare:
        bare = shown
    number = _PAIR.sub(r"\1", _GAP.sub("", _UNIT.sub("", bare)).removesuffix("."))
    return number[1:] if number[:1] in ("+", "-", "\u2212") else number


def _in_lowest_terms(number: str) -> bool:
    found = _FRACTION.fullmatch(number)
    if not found:
        return False
    above, below = (int(next(part for part in parts if part)) for parts in (found.group(2, 3, 6), found.group(4, 5, 7)))
    return below > 1 and gcd(above, below) == 1
