"""How many tokens each prompt has: measured once for a tokenizer and a set of texts, where there are many of them.

8,000 worked solutions of 3,200 tokens take half a minute on two cores.
"""

import hashlib
import json
import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from cluster.default_model import default_cache
from rollout.render import Pair, Renderer

MANY = 1000  # prompts: below it, measuring them takes no longer than looking them up


def remembered_lengths(renderer: Renderer, pairs: Collection[Pair]) -> dict[Pair, int]:
    """The tokens of each (question, context); those of many are kept in the default model's cache."""
    ordered = sorted(set(pairs), key=str)  # a question is a text or a conversation
    if len(ordered) < MANY:
        return dict(zip(ordered, renderer.lengths(ordered), strict=True))
    digest = hashlib.sha256(json.dumps([renderer.identity, ordered]).encode()).hexdigest()
    path = default_cache() / "lengths" / f"{digest}.json"
    if path.is_file():
        return dict(zip(ordered, json.loads(path.read_text(encoding="utf-8")), strict=True))
    lengths = renderer.lengths(ordered)
    with suppress(OSError):  # a cache that cannot be written costs the time, not the run
        _keep(path, json.dumps(lengths))
    return dict(zip(ordered, lengths, strict=True))


def _keep(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_suffix(f".{os.getpid()}")
    written.write_text(text, encoding="utf-8")
    written.replace(path)
