r"""Is something left to work out in an expression, as in (2 + 1)\pi? By its text alone, like boxed_numbers.py.

Numbers that are still to be added, multiplied or divided count, and so do terms that differ in their numbers only, such
as \pi + 2\pi. Powers and roots stay as they are, and so does a product of sums.
"""

import re
from math import gcd

from rollout.tasks.boxed_numbers import NAMED, pieces

_NUMBER = r"(?:\d+(?:\.\d+)?|\.\d+)"
_BRACES = r"\{[^{}]*\}"
_SPACE = re.compile(r"(?<!\d) | (?!\d)")  # in 1 2/3 it separates
_COMMA = re.compile(r"(?<=\d)\{,\}(?=\d{3}(?!\d))")  # of 1{,}234
_SIGN = re.compile(r"(?<![\^_])(?:[+\-\u2212±]|\\(?:pm|mp)(?![a-z]))")
_TIMES = re.compile(r"\\(?:cdot|times|div)(?![a-z])|[*×·÷]")
_COEFFICIENT = re.compile(rf"^{_NUMBER}(?![\d.^_!/])")  # no base of a power, and no part of 2/x
_ALONE = re.compile(rf"(?<![a-zA-Z}}])(?<![_^]\d)\(({_NUMBER})\)(?![\^!])")  # no f(2)
# What may stand beside a number above or below a line: one factor after another, and no sum.
_FACTORS = rf"(?![\d.^_!])(?:[^{{}}+\-\u2212]|{_BRACES})*"
_FRACTION = re.compile(rf"\\[dt]?frac(?:\{{(\d+){_FACTORS}\}}|(\d))(?:\{{(\d+){_FACTORS}\}}|(\d))")
_SLASH = re.compile(rf"(?<![\w.^)}}/])(\d+)(?:\\?[a-zA-Z]+(?:{_BRACES})?)?/(\d+)(?![\d.^!])")
_OF_NUMBERS = re.compile(
    r"(?<![\d.^_])\d*\\[dt]?frac(?:\{\d+\}|\d)(?:\{\d+\}|\d)(?!\^)|(?<![\w.^)}/])\d+/\d+(?![\d.^!])"
)
_GROUP = re.compile(r"\\?[({\[][^(){}\[\]]*[)}\]]")
_BRACKET = re.compile(r"[(){}\[\]]")


def is_unfinished(answer: str) -> bool:
    """Whether a number of an answer, or of a part of a list, a tuple, a set or a matrix, is still to be worked out."""
    return any(map(_is_unfinished, pieces(answer)))


def _is_unfinished(piece: str) -> bool:
    text = _COMMA.sub("", _SPACE.sub("", NAMED.sub("", piece)))
    if any(map(_cancels, [*_FRACTION.finditer(text), *_SLASH.finditer(text)])):
        return True
    return any(map(_has_sum_or_product, _groups(_ALONE.sub(r"*\1*", _OF_NUMBERS.sub("0.5", text)))))


def _cancels(fraction: re.Match[str]) -> bool:
    above, below = (int(number) for number in fraction.groups() if number)
    return below == 1 or gcd(above, below) != 1


def _groups(text: str) -> list[str]:
    """What each pair of brackets holds, and what is outside of all; the same group in it is the same character."""
    names: dict[str, str] = {}
    count = 1
    while count:
        text, count = _GROUP.subn(lambda group: names.setdefault(group[0], chr(0xE000 + len(names))), text)
    return [*(group.lstrip("\\")[1:-1].rstrip("\\") for group in names), *_BRACKET.split(text)]


def _has_sum_or_product(group: str) -> bool:
    terms = [list(filter(None, _TIMES.split(term))) for term in _SIGN.split(group) if term]
    kinds = [tuple(filter(None, (_COEFFICIENT.sub("", factor, count=1) for factor in factors))) for factors in terms]
    return len(set(kinds)) < len(kinds) or any(sum(map(_has_number, factors)) > 1 for factors in terms)


def _has_number(factor: str) -> bool:
    return _COEFFICIENT.match(factor) is not None
