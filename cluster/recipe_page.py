"""docs/recipes.md's tables: every key of a recipe, from the dataclasses that check it.

    python -m cluster.recipe_page

prints them as Markdown. A key's meaning is the comment at its field, its range what its class's check expects. Both are
read from the source, or asked of the check, so that each stands in one place.
"""

import ast
import dataclasses
import inspect
import re
import tokenize
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.config import Recipe

Row = tuple[str, str, str, str, str]  # key, type, default, range, meaning


def tables() -> str:
    """A section a table of the recipe, in the recipe's order."""
    hints = typing.get_type_hints(Recipe)
    return "\n".join(_section(field.name, hints[field.name]) for field in dataclasses.fields(Recipe))


def rows(cls: type) -> list[Row]:
    """Of one table's dataclass; a field that it inherits is read where it is written."""
    hints = typing.get_type_hints(cls)
    owners = [base for base in reversed(cls.__mro__) if dataclasses.is_dataclass(base)]
    meanings = {name: text for owner in owners for name, text in _comments(owner).items()}
    ranges = {name: text for owner in owners for name, text in _ranges(owner).items()}
    return [
        (
            field.name,
            _kind(hints[field.name]),
            _shown(field.default),
            ranges.get(field.name, "") or _choices(cls, field),
            meanings.get(field.name, ""),
        )
        for field in dataclasses.fields(cls)
    ]


def _section(table: str, cls: type) -> str:
    head = f"## [{table}]\n\n{_summary(cls)}\n\n| key | type | default | range | meaning |\n|---|---|---|---|---|\n"
    lines = [
        "| " + " | ".join(cell.replace("|", r"\|") for cell in (f"`{row[0]}`", *row[1:])) + " |" for row in rows(cls)
    ]
    return head + "\n".join(lines) + "\n"


def _summary(cls: type) -> str:
    """The first paragraph of the class's docstring."""
    return " ".join(inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].split())


def _kind(hint: Any) -> str:
    args = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return f"list of {_kind(args[0])}"
    return {str: "text", int: "whole number", float: "number", bool: "true or false"}[hint]


def _shown(default: Any) -> str:
    """As a recipe writes it."""
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, tuple):
        return f"`[{', '.join(_shown(item).strip('`') for item in default)}]`"
    return f'`"{default}"`' if isinstance(default, str) else f"`{default:g}`" if default < 1e-3 else f"`{default}`"


def _source(cls: type) -> tuple[Path, ast.ClassDef]:
    path = Path(inspect.getsourcefile(cls) or "")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return path, next(node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == cls.__name__)


def _comments(cls: type) -> dict[str, str]:
    """What stands behind each field, and what its class's docstring says of it (`name: ...`)."""
    path, node = _source(cls)
    with tokenize.open(path) as file:
        behind = {
            token.start[0]: token.string.lstrip("# ")
            for token in tokenize.generate_tokens(file.readline)
            if token.type == tokenize.COMMENT
        }
    fields = [part for part in node.body if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)]
    names = [part.target.id for part in fields if isinstance(part.target, ast.Name)]
    told = _told(inspect.cleandoc(cls.__doc__ or ""), names)
    return told | {name: behind[part.lineno] for name, part in zip(names, fields, strict=True) if part.lineno in behind}


def _told(text: str, names: list[str]) -> dict[str, str]:
    """Each name's sentences in a docstring that says `name: ...`, up to the next name or paragraph."""
    known = "|".join(map(re.escape, names))
    pattern = rf"(?:^|(?<=\s))({known}): (.*?)(?=\s(?:{known}): |\n\n|\Z)"
    return {match[1]: " ".join(match[2].split()) for match in re.finditer(pattern, text, re.DOTALL)}


def _ranges(cls: type) -> dict[str, str]:
    """What the checks of a class expect of a key, where they say it in plain words."""
    _, node = _source(cls)
    return {name: expected for call in ast.walk(node) for name, expected in _expected(call)}


def _choices(cls: type, field: "dataclasses.Field[Any]") -> str:
    """What the class says that it expects of a text that it does not know."""
    if not isinstance(field.default, str):
        return ""
    try:
        cls(**{field.name: "?"})
    except ValueError as error:
        found = str(error).partition("expected ")[2].removeprefix("one of ")
        return ", ".join(f"`{name}`" for name in re.findall(r"\w+", found)) if " the " not in found else ""
    return ""


def _expected(call: ast.AST) -> Iterator[tuple[str, str]]:
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and len(call.args) == 4):
        return
    key, expected = call.args[1], call.args[3]
    if isinstance(key, ast.Constant) and isinstance(expected, ast.Constant):
        yield str(key.value).rpartition(".")[2], str(expected.value)


if __name__ == "__main__":
    print(tables())
