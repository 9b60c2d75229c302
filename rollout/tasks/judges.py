"""How an answer is judged: does a response say what a row's answer is? One literal table; a judge is one line of it."""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import isclose, isfinite

from rollout.tasks import boxed
from rollout.tasks.scripts import name_pattern

# A sign counts where nothing is written before it: 2020-2024 is two years. Commas only between groups of three digits.
_NUMBER = re.compile(r"(?<![\w.])[-\u2212]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][+-]?\d+)?")
PATTERN_S = 2.0  # of a search


@dataclass(frozen=True)
class Judge:
    """fault: why nothing can be held against a row's answer, or "". accepts: (answer, response) -> is it right?"""

    fault: Callable[[str], str]
    accepts: Callable[[str, str], bool]


def normalised(text: str) -> str:
    """Compatibility forms, case, punctuation and spaces taken away: words with one space between them."""
    return re.sub(r"[\W_]+", " ", unicodedata.normalize("NFKC", text).casefold()).strip()


def numbers_in(text: str) -> list[float]:
    """Every number that a text has in digits, 1,234.5 as one; those too large for a float are left out."""
    found = (float(match[0].replace(",", "").replace("\u2212", "-")) for match in _NUMBER.finditer(text))
    return [number for number in found if isfinite(number)]


@lru_cache(4096)
def _words(answer: str) -> re.Pattern[str]:
    return re.compile(name_pattern(normalised(answer).split()), re.IGNORECASE)


def _says(answer: str, response: str) -> bool:
    return _words(answer).search(normalised(response)) is not None


def matches(pattern: str, response: str) -> bool:
    """Whether the pattern is found, whatever the case, within PATTERN_S; other threads go on meanwhile.

    A few characters of a pattern can keep a search busy for ever, and Python's own `re` has no time limit. What takes
    long is wrong, as for the verifier, and said in the process's log.
    """
    import regex  # no part of a reader's installation

    try:
        return regex.search(pattern, response, regex.IGNORECASE, timeout=PATTERN_S, concurrent=True) is not None
    except TimeoutError:
        print(f"answer: found {pattern!r}, which takes more than {PATTERN_S:g} s on {len(response)} characters: wrong")
        return False


def _has_number(answer: str, response: str) -> bool:
    """Relative to 1e-9, as a decimal fraction may be written in two ways."""
    (wanted,) = numbers_in(answer)
    return any(isclose(found, wanted, rel_tol=1e-9) for found in numbers_in(response))


def _fault_of_text(answer: str) -> str:
    return "" if normalised(answer) else "no letter and no digit in it, expected a text to look for"


def _fault_of_pattern(answer: str) -> str:
    import regex

    try:
        pattern = regex.compile(answer)
    except regex.error as error:
        return f"{error}, expected a regular expression"
    if pattern.search("") is None:
        return ""
    if "(?!" not in answer:
        return "it matches an empty answer, expected a pattern of something"
    # Of what must not be said, which an empty answer does not say. Looked for anywhere it is not said somewhere.
    return "it matches at the end of every answer, expected ^ before (?!" if pattern.search(" ", 1) else ""


def _fault_of_number(answer: str) -> str:
    alone = _NUMBER.fullmatch(answer.strip()) is not None and numbers_in(answer)
    return "" if alone else "expected one number in digits"


def _fault_of_box(answer: str) -> str:
    return boxed.fault_of_gold(answer) or ""


JUDGES = {
    "text": Judge(_fault_of_text, _says),  # the response has these words, whatever their case and punctuation
    "regex": Judge(_fault_of_pattern, matches),  # the pattern is found in the response, whatever its case
    "number": Judge(_fault_of_number, _has_number),  # a number of the response equals it
    "boxed": Judge(_fault_of_box, boxed.is_worked_out),  # the last \boxed{} equals it, and is worked out
}
