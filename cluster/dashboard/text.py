"""JSON as text that may stand in a script of a page, put together of parts that are text already."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

_ENCODER = json.JSONEncoder(allow_nan=False, separators=(",", ":"))


def script_text(value: Any) -> str:
    """JSON that may stand in a script of a page: no tag ends it, and no line separator breaks it."""
    text = _ENCODER.encode(value)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def list_of(items: Iterable[str]) -> str:
    """An array of items that are text already."""
    return f"[{','.join(items)}]"


def object_of(members: Mapping[str, str]) -> str:
    """An object of members that are text already."""
    return f"{{{','.join(f'{script_text(name)}:{text}' for name, text in members.items())}}}"
