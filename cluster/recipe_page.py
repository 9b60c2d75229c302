"""docs/recipes.md's tables: every key of a recipe, from the dataclasses that own them.

A key's meaning is the comment beside its field, or above it. Its range is what the check of that key says it expected,
of a value that cannot be right; where that is empty, a recipe takes any value of the type.
"""

import ast
import dataclasses
import inspect
import re
import textwrap
import typing
from collections.abc import Iterator
from typing import Any

from cluster.config import Recipe
from cluster.typed import KINDS, build
from rollout.tasks import build_task

Row = tuple[str, str, str, str, str]  # key, type, default, range, meaning

_TYPES = {kind: words.removeprefix("a ") for kind, words in KINDS.items()}
_WRONG: dict[Any, tuple[Any, ...]] = {
    int: (-1,), float: (-1.0, float("nan")), str: ("?",), bool: (), bool | str: ("?",),
}  # fmt: skip


def meanings(cls: type) -> dict[str, str]:
    """What each field of a dataclass means, its own and inherited ones: the comment on its line, or those above it."""
    found: dict[str, str] = {}
    for owner in reversed(cls.__mro__):
        if dataclasses.is_dataclass(owner):
            found |= dict(_commented(owner))
    return found


def _commented(cls: type) -> Iterator[tuple[str, str]]:
    source = textwrap.dedent(inspect.getsource(cls))
    lines = source.splitlines()
    (tree,) = ast.parse(source).body
    assert isinstance(tree, ast.ClassDef)
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            assert node.end_lineno is not None
            beside = lines[node.end_lineno - 1][node.end_col_offset :].strip()
            yield node.target.id, beside.removeprefix("# ") or " ".join(_above(lines, node.lineno - 1))


def _above(lines: list[str], first: int) -> list[str]:
    """The comment lines that end before line `first`, counted from 0."""
    start = first
    while lines[start - 1].lstrip().startswith("#"):
        start -= 1
    return [line.strip().removeprefix("# ") for line in lines[start:first]]


def expected(table: str, key: str, kind: Any) -> str:
    """What the checks of a key expect, in their own words; "" where any value of its type will do."""
    for wrong in _wrong_values(kind):
        try:
            build_task(build(Recipe, {table: {key: wrong}}, "recipe").task)
        except ValueError as error:
            found = re.search(rf"\b{table}\.{key}: found .*?, expected (?!it left out)(.*)", str(error), re.DOTALL)
            if found:
                return re.sub(r"[()\[\]']", "", found[1]) if found[1].startswith("one of") else found[1]
    return ""


def _wrong_values(kind: Any) -> tuple[Any, ...]:
    if dataclasses.is_dataclass(kind):  # a table in a table: its keys are texts
        return ()
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)
        return ([],) if inner[-1] is ... else ([-1.0] * len(inner),)
    return _WRONG[kind]


def table_rows(table: str) -> list[Row]:
    """(key, type, default, range, meaning) of the keys of a table; of [teacher] only what [student] has otherwise."""
    cls = typing.get_type_hints(Recipe)[table]
    kinds, means = typing.get_type_hints(cls), meanings(cls)
    return [
        (key, _type_name(kinds[key]), _toml(getattr(cls, key)), expected(table, key, kinds[key]), means[key])
        for key in inspect.get_annotations(cls)
    ]


def _type_name(kind: Any) -> str:
    if dataclasses.is_dataclass(kind):
        return "table"
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)
        return "texts" if inner[0] is str else f"{len(inner)} {_TYPES[inner[0]]}s"
    return _TYPES[kind]


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        inner = (f"{name} = {_toml(default)}" for name, default in dataclasses.asdict(value).items())
        return f"{{{', '.join(inner)}}}"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return f'"{value}"' if isinstance(value, str) else repr(value)


def tables() -> str:
    """One table of Markdown for each table of a recipe."""
    hints = typing.get_type_hints(Recipe)
    parts = []
    for name in (field.name for field in dataclasses.fields(Recipe)):
        head = [f"## [{name}]", "", (inspect.getdoc(hints[name]) or "").split("\n\n")[0]]
        if not dataclasses.is_dataclass(hints[name]):  # any key
            parts.append("\n".join(head))
            continue
        head += ["", "| key | type | default | range | meaning |"]
        parts.append("\n".join([*head, "|---|---|---|---|---|", *(_cells(*row) for row in table_rows(name))]))
    return "\n\n".join(parts) + "\n"


def _cells(key: str, kind: str, default: str, allowed: str, meaning: str) -> str:
    cells = (f"`{key}`", kind, f"`{default}`", allowed, meaning)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
