"""How an answer is judged: does a response say what a row's answer is? One literal table; a judge is one line of it."""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from math import isclose, isfinite
from typing import TYPE_CHECKING

from rollout.tasks import boxed
from rollout.tasks.scripts import BEFORE_NUMBER, BEFORE_SIGN, name_pattern

if TYPE_CHECKING:
    import regex

# A sign counts where nothing is written before it: 2020-2024 is two years. Commas only between groups of three digits.
_NUMBER = re.compile(
    rf"(?:{BEFORE_SIGN}[-\u2212]|{BEFORE_NUMBER})"
    r"(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+)?"
)
# Vowel signs and tones are characters of their own. A minus before and a plus after count: -5 is not 5, nor C++ C. So
# does what joins a number's parts: 0.5 and 1:5 are not 5.
_WORD = (
    r"(?:(?<![\w.])-(?=\.?\d))?(?:(?<![\w.])\.(?=\p{N}))?"
    r"[\p{L}\p{N}](?:[\p{L}\p{N}\p{Mn}\p{Mc}]|(?<=\p{N})[.,:](?=\p{N}))*+"
    r"(?:(?<=\p{L})(?:\+\+|[+#](?![\p{L}\p{N}])))?"
)
_THOUSANDS = r"(?<![\p{N}.,:])\p{N}{1,3}(?:,\p{N}{3})+(?![\p{N},:])"
_JOINT = "\u2009"  # a space between two parts of a number, at which no other begins or ends
_BODY = r"\(\?!((?:[^()]|\((?1)\))*)\)"  # of a pattern without escapes and classes, where it says what must not follow
_VARIANTS = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]")  # of how a letter is drawn
_PART = re.compile(r"\{(\d+)(?:,\d*)?\}|[\s\S]")  # of such a pattern: a repeat, or a character
PATTERN_S = 2.0  # of a search
DEEP, LARGE = 50, 200_000  # brackets in brackets, each some calls deep; characters with repeats, 0.3 to 0.4 kB each


@dataclass(frozen=True)
class Judge:
    """fault: why nothing can be held against a row's answer, or "". accepts: (answer, response) -> is it right?"""

    fault: Callable[[str], str]
    accepts: Callable[[str, str], bool]


def normalised(text: str) -> str:
    """Words with one space between them, in one form of each letter and without case and punctuation, but for the point
    in a number."""
    import regex  # no part of a reader's installation

    plain = _VARIANTS.sub("", unicodedata.normalize("NFKC", text)).casefold().replace("\u2212", "-")
    words = " ".join(regex.findall(_WORD, plain))
    whole = regex.sub(_THOUSANDS, lambda number: number[0].replace(",", ""), words)
    return regex.sub("[,:]", _JOINT, regex.sub(r"(?<!\S)(-?)\.", r"\g<1>0.", whole))


def numbers_in(text: str) -> list[Decimal]:
    """Every number that a text has in digits, 1,234.5 as one; those too large for a float are left out."""
    found = (match[0].replace(",", "").replace("\u2212", "-").lower() for match in _NUMBER.finditer(text))
    return [Decimal(float(one) if "e" in one else one) for one in found if isfinite(float(one))]


def is_number(text: str) -> bool:
    """Whether a text is one number in digits, and no name such as 007."""
    text = text.strip()
    return _NUMBER.fullmatch(text) is not None and not re.match(r"\D?0\d", text) and bool(numbers_in(text))


@lru_cache(4096)
def _words(answer: str) -> "regex.Pattern[str]":
    import regex

    return regex.compile(
        rf"(?<![-.{_JOINT}]){name_pattern(normalised(answer).split())}(?![+#.{_JOINT}\p{{M}}])", regex.IGNORECASE
    )


def _says(answer: str, response: str) -> bool:
    return _words(answer).search(normalised(response)) is not None


def matches(pattern: str, response: str) -> bool:
    """Whether the pattern is found, whatever the case, within PATTERN_S; other threads go on meanwhile.

    A few characters of a pattern can keep a search busy for ever, and Python's own `re` has no time limit. What takes
    long is wrong, as for the verifier, and said in the process's log.
    """
    import regex

    try:
        return regex.search(pattern, response, regex.IGNORECASE, timeout=PATTERN_S, concurrent=True) is not None
    except TimeoutError:
        print(f"answer: found {pattern!r}, which takes more than {PATTERN_S:g} s on {len(response)} characters: wrong")
        return False


def _has_number(answer: str, response: str) -> bool:
    (wanted,) = numbers_in(answer)
    return any(_is_equal(found, wanted) for found in numbers_in(response))


def _is_equal(one: Decimal, other: Decimal) -> bool:
    """Whole numbers digit by digit, others relative to 1e-9: a decimal fraction may be written in two ways."""
    whole = float(one).is_integer() and float(other).is_integer()
    return one == other if whole else isclose(one, other, rel_tol=1e-9)


def _fault_of_text(answer: str) -> str:
    return "" if normalised(answer) else "no letter and no digit in it, expected a text to look for"


def _fault_of_pattern(answer: str) -> str:
    import regex

    if fault := _fault_of_size(answer):
        return fault
    try:
        pattern = regex.compile(answer)
    except regex.error as error:
        return f"{error}, expected a regular expression"
    except RecursionError:  # of sets in sets
        return "nested too deep to read, expected a regular expression"
    if not pattern.flags & regex.DOTALL and _stops_at_a_line(answer):
        return (
            "after (?! its . ends with the line, so that what is said on the next is not seen, expected (?s) at the "
            "beginning"
        )
    if pattern.search("") is None:
        return ""
    if "(?!" not in answer:
        return "it matches an empty answer, expected a pattern of something"
    # Of what must not be said, which an empty answer does not say. Looked for anywhere it is not said somewhere.
    return "it matches at the end of every answer, expected ^ before (?!" if pattern.search("\n", 1) else ""


def _fault_of_size(answer: str) -> str:
    """A pattern is compiled by calls in calls, and with its repeats written out, which may take more memory than there
    is."""
    sizes, last, deep = [0.0], 0.0, 0  # of the brackets that are open, and of what a repeat would be of
    for part in _PART.finditer(_plain(answer)):
        if part[1]:
            more = last * (max(float(part[1]), 1.0) - 1.0)
            sizes[-1], last = sizes[-1] + more, last + more
        elif part[0] == "(":
            sizes.append(0.0)
            deep = max(deep, len(sizes) - 1)
        else:
            last = sizes.pop() if part[0] == ")" and len(sizes) > 1 else 1.0
            sizes[-1] += last
    if deep > DEEP:
        return f"brackets {deep} deep, expected at most {DEEP}"
    large = sum(sizes)
    return f"{large:.0f} characters with its repeats written out, expected at most {LARGE}" if large > LARGE else ""


def _plain(pattern: str) -> str:
    """With x for each escape and class, which may hold any sign."""
    return re.sub(r"\[\^?\]?[^\]]*\]", "x", re.sub(r"\\.", "x", pattern))


def _stops_at_a_line(answer: str) -> bool:
    """Whether the pattern looks for what must not follow through any characters but a line's end, as in (?!.*Ada)."""
    import regex

    plain = _plain(answer)
    bodies = regex.findall(_BODY, plain) if not regex.search(r"\(\?\w*s", plain) else []
    return any(regex.search(r"\.(?:[*+]|\{\d*,)", body) for body in bodies)


def _fault_of_number(answer: str) -> str:
    alone = _NUMBER.fullmatch(answer.strip()) is not None and numbers_in(answer)
    return "" if alone else "expected one number in digits"


def _fault_of_box(answer: str) -> str:
    return boxed.fault_of_gold(answer) or ""


JUDGES = {
    "text": Judge(_fault_of_text, _says),  # the response has these words, whatever their case and punctuation marks
    "regex": Judge(_fault_of_pattern, matches),  # the pattern is found in the response, whatever its case
    "number": Judge(_fault_of_number, _has_number),  # a number of the response equals it
    "boxed": Judge(_fault_of_box, boxed.is_worked_out),  # the last \boxed{} equals it, and is worked out
}
