"""How many tokens each prompt has: measured once for a tokenizer and a set of texts, where there are many of them.

8,000 worked solutions of 3,200 tokens take half a minute on two cores. What is below the limit is estimated: a text
has at most the tokens of its words by themselves, since tokens end where a word begins, and few words are different.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

from cluster.default_model import default_cache
from evidence.files import write_whole
from evidence.lines import from_json
from rollout.render import Pair, Renderer

SLACK = 8  # tokens by which an estimate may be too small
MARGIN = 0.1  # and its share, of a tokenizer of which that was seen in a sample
SAMPLE = 64  # of prompts that may be near the limit
LETTER = "a"
MANY = 1000  # prompts: below it, measuring them takes no longer than looking them up


def remembered_lengths(renderer: Renderer, pairs: Collection[Pair]) -> dict[Pair, int]:
    """The tokens of each (question, context); those of many are kept in the default model's cache."""
    ordered = sorted(set(pairs), key=str)  # a question is a text or a conversation
    if len(ordered) < MANY:
        return dict(zip(ordered, renderer.lengths(ordered), strict=True))
    digest = hashlib.sha256(json.dumps([renderer.identity, ordered]).encode()).hexdigest()
    path = default_cache() / "lengths" / f"{digest}.json"
    lengths = _kept(path, digest, len(ordered))
    if lengths is None:
        lengths = renderer.lengths(ordered)
        with suppress(OSError):  # a cache that cannot be written costs the time, not the run
            write_whole(path, json.dumps({digest: lengths}))
    return dict(zip(ordered, lengths, strict=True))


def _kept(path: Path, digest: str, count: int) -> list[int] | None:
    """What the file says of the texts of this digest; None where it is damaged, of other texts, or not there."""
    try:
        lengths = from_json(path.read_bytes())[digest]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    is_whole = isinstance(lengths, list) and len(lengths) == count
    return lengths if is_whole and all(type(length) is int and length > 0 for length in lengths) else None


def lengths_near(renderer: Renderer, pairs: Collection[Pair], limit: int) -> dict[Pair, int]:
    """The tokens of each (question, context): exact where they may be more than `limit`, else an estimate below it."""
    estimates = estimated_lengths(renderer, pairs)
    near = [pair for pair, length in estimates.items() if length * (1 + MARGIN) + SLACK > limit]
    sample = near[:: 1 + len(near) // SAMPLE]
    found = remembered_lengths(renderer, sample)
    if all(length <= estimates[pair] + SLACK for pair, length in found.items()):
        near = [pair for pair in near if estimates[pair] + SLACK > limit]
    found |= remembered_lengths(renderer, near)
    return {pair: found.get(pair, length) for pair, length in estimates.items()}


def estimated_lengths(renderer: Renderer, pairs: Collection[Pair]) -> dict[Pair, int]:
    """The tokens of each (question, context), about: those of the template, and of every word of its texts."""
    of_text = _of_texts(renderer, {text for pair in pairs for text in _texts(pair)})
    shapes = [_shape(pair) for pair in pairs]
    of_frame = _frames(renderer, set(shapes))
    return {
        pair: of_frame[shape] + sum(map(of_text.__getitem__, _texts(pair)))
        for pair, shape in zip(pairs, shapes, strict=True)
    }


def _of_texts(renderer: Renderer, texts: Collection[str]) -> dict[str, int]:
    """A space is part of the word after it; each further one counts as a token."""
    words, first = set[str](), set[str]()
    for text in texts:
        begins, *others = text.split(" ")
        first.add(begins)
        words.update(others)
    spoken = [*(f" {word}" for word in words), *first]
    of_word = dict(zip(spoken, renderer.text_lengths(spoken), strict=True))
    inside = {word: of_word[f" {word}"] if word else 1 for word in words}
    return {text: _words_of(text, of_word, inside) for text in texts}


def _texts(pair: Pair) -> list[str]:
    question, context = pair
    return [context, *([question] if isinstance(question, str) else [text for _, text in question])]


def _words_of(text: str, of_first: Mapping[str, int], of_word: Mapping[str, int]) -> int:
    first, *words = text.split(" ")
    return of_first[first] + sum(map(of_word.__getitem__, words))


def _shape(pair: Pair) -> Pair:
    """The same conversation with texts of one token: what is left of it is the template's."""
    question, context = pair
    turns = (("user", question),) if isinstance(question, str) else question
    return tuple((role, LETTER) for role, _ in turns), LETTER if context.strip() else ""


def _frames(renderer: Renderer, shapes: Collection[Pair]) -> dict[Pair, int]:
    ordered = list(shapes)
    lengths = zip(ordered, renderer.lengths(ordered), strict=True)
    return {shape: length - len(shape[0]) - bool(shape[1]) for shape, length in lengths}
