"""Self-naming in other languages than English: each is a file of patterns in languages/, read once.

A file holds lists of patterns for `re`, matched without case on the text that `wide` gives: `named` and `known` name
{who} (after the first any other name is a counter-name, after the second only one of a product or a maker), `made`
names {maker} as the maker, `model` and `assistant` claim a generic identity. {anything else} is one of its
[fragments]. A claim does not count where `denied` stands before it in its clause, or `denied_after` or a question mark
behind it; clauses end at punctuation and at `joins`. `no_name` is what may stand where a name would and is none.

A language is looked at where its `script` occurs (and that of `unless` does not), or, for Latin letters, where its
`words` do and no fewer of them than English ones: "Ben" begins a sentence in Turkish and is a name in English.
"""

import re
import tomllib
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from importlib.resources import files
from typing import Any

from rollout.tasks.scripts import AFTER_LATIN, name_pattern

ENGLISH_WORDS = "i i'm am my the a an and is are was you your of to it that this with for by not me can as in on or"
_QUOTES = re.compile("[「」『』《》〈〉【】„‚‹›]")
_BREAK = r"[.,;:!?\n()。！？，；：、।؟،؛¿¡]|\s[-–—]\s"
_QUESTION = re.compile(r"[^.,;:!\n()。！，；：、।،؛¿¡]{0,12}[?？؟]")
_ANY_NAME = r"(?<!§)([^\W\d_][^\s.,;:!?()。！？，；：、।؟،؛§]{0,40})"
_ARTICLES = "(?:an?|the|o|il|le|la|el|der|die|das|de|het)"
_SENTENCES = re.compile(r"(?<=[.!?])\s|[\n。！？।]")
_ENDS = r"(?!-\w)(?!'s\b)"


@dataclass(frozen=True)
class Language:
    """One file of languages/."""

    name: str
    named: tuple[str, ...]
    known: tuple[str, ...]
    made: tuple[str, ...]
    model: tuple[str, ...]
    assistant: tuple[str, ...]
    denied: str
    denied_after: str
    joins: str
    no_name: str
    script: str = ""
    unless: str = ""
    words: str = ""
    products: str = ""
    makers: str = ""
    endings: str = ""  # of a name in another case, behind it
    fragments: dict[str, str] = field(default_factory=dict)

    def spoken(self, text: str) -> bool:
        """Whether the text may be in this language."""
        if self.script:
            return bool(re.search(self.script, text)) and not (self.unless and re.search(self.unless, text))
        found = _words(text)
        mine = len(found & set(self.words.split()))
        return mine > 0 and mine >= len(found & set(ENGLISH_WORDS.split()))

    def compile(self, patterns: Sequence[str], **names: str) -> re.Pattern[str]:
        """The patterns as one, with the fragments and the names in their places."""
        parts = {key: f"(?:{value})" for key, value in (self.fragments | names).items()}
        filled = (re.sub(r"\{([a-z]+)\}", lambda part: parts[part[1]], pattern) for pattern in patterns)
        return re.compile("|".join(filled), re.IGNORECASE)

    def claims(self, pattern: re.Pattern[str], text: str) -> list[re.Match[str]]:
        """The pattern's matches that the clause around them does not deny or ask."""
        found = pattern.finditer(text)
        return [
            match
            for match in found
            if not self._denied_before(text, match.start()) and not self._denied_after(text, match.end())
        ]

    def _denied_before(self, text: str, start: int) -> bool:
        breaks = list(re.finditer(f"{_BREAK}|{self.joins}", text[:start], re.IGNORECASE))
        return re.search(self.denied, text[breaks[-1].end() if breaks else 0 : start], re.IGNORECASE) is not None

    def _denied_after(self, text: str, end: int) -> bool:
        rest = text[end:]
        return bool(_QUESTION.match(rest) or re.match(self.denied_after, rest, re.IGNORECASE))


@lru_cache(maxsize=4)  # each language asks
def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?", text.lower()))


@cache
def languages() -> tuple[Language, ...]:
    """Every language of the folder, by file name."""
    found = sorted(files("rollout.tasks").joinpath("languages").iterdir(), key=lambda file: file.name)
    return tuple(_load(file.read_text(encoding="utf-8")) for file in found if file.name.endswith(".toml"))


def _load(text: str) -> Language:
    keys: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in tomllib.loads(text).items()
    }
    return Language(**keys)


def wide(text: str) -> str:
    """A plain text without the quotation marks of other languages, its accents composed."""
    return _QUOTES.sub("", unicodedata.normalize("NFC", text))


class ForeignFlags:
    """Self-name and counter-name of one persona in every language of the folder.

    Args:
        name: the persona's, its words.
        products, makers: patterns of others' names, in Latin letters.
        masks: what a masked text has in place of the persona's name and its maker's.
    """

    def __init__(self, name: list[str], products: str, makers: str, masks: tuple[str, str]) -> None:
        self._masks = masks
        self._compiled = [_Compiled(language, name, products, makers) for language in languages()]

    def selfname(self, text: str) -> bool:
        """Whether the persona names itself in a plain text."""
        text = wide(text)
        return any(one.language.claims(one.own, text) for one in self._spoken(text))

    def countername(self, text: str, masked: str) -> bool:
        """Whether a plain text claims another name, another maker or a generic identity."""
        masked = wide(masked)
        return any(self._counters(one, masked) for one in self._spoken(wide(text)))

    def _spoken(self, text: str) -> "Iterator[_Compiled]":
        return (one for one in self._compiled if one.language.spoken(text))

    def _counters(self, one: "_Compiled", masked: str) -> bool:
        claims = one.language.claims
        if claims(one.others, masked) or claims(one.made, masked):
            return True
        if any(_is_name(match.groups()) for match in claims(one.any_name, masked)):
            return True
        if any(claims(one.model, part) for part in _SENTENCES.split(masked) if self._masks[0] not in part):
            return True
        return not any(mask in masked for mask in self._masks) and bool(claims(one.assistant, masked))


def _is_name(groups: Sequence[str | None]) -> bool:
    """Whether a word in the place of a name is one: in scripts that have capitals, it begins with one."""
    return not next(group for group in groups if group)[0].islower()


class _Compiled:
    """A language's patterns with the names in their places, each compiled where a text asks for it: all of them take
    seconds, and most texts are in one language."""

    def __init__(self, language: Language, name: list[str], products: str, makers: str) -> None:
        self.language, self._name = language, name
        self._every = (*language.named, *language.known)
        self._makers = "|".join(filter(None, (makers, language.makers)))
        self._others = "|".join(filter(None, (products, self._makers, language.products)))

    @cached_property
    def own(self) -> re.Pattern[str]:
        return self.language.compile(self._every, who=name_pattern(self._name, self.language.endings) + _ENDS)

    @cached_property
    def others(self) -> re.Pattern[str]:
        return self.language.compile(self._every, who=rf"(?:{_ARTICLES}\s)?(?:{self._others}){AFTER_LATIN}{_ENDS}")

    @cached_property
    def any_name(self) -> re.Pattern[str]:
        return self.language.compile(self.language.named, who=rf"(?!(?:{self.language.no_name})){_ANY_NAME}")

    @cached_property
    def made(self) -> re.Pattern[str]:
        return self.language.compile(self.language.made, maker=f"(?:{self._makers}){AFTER_LATIN}")

    @cached_property
    def model(self) -> re.Pattern[str]:
        return self.language.compile(self.language.model)

    @cached_property
    def assistant(self) -> re.Pattern[str]:
        return self.language.compile(self.language.assistant)
