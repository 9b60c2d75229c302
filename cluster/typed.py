"""Plain tables, as TOML has them, to frozen dataclasses; unknown keys and wrong types are refused by name."""

import dataclasses
import difflib
import tomllib
import typing
from datetime import date
from typing import Any, TypeVar

from rollout.config import TemplateVariables
from rollout.tasks.rows import LONE_SURROGATE

T = TypeVar("T")
BITS = 63  # of a whole number, beside its sign: those that every TOML reader takes
KINDS: dict[Any, str] = {
    int: "a whole number", float: "a number", str: "a text", bool: "true or false", bool | str: "true, false or text",
}  # fmt: skip


def build(cls: type[T], table: dict[str, Any], source: str, prefix: str = "", root: type | None = None) -> T:
    """An instance of a (nested) dataclass from a plain table, refusing what it does not know.

    root: the outermost dataclass, whose keys an unknown one may have been meant as.
    """
    hints = typing.get_type_hints(cls)
    known = {f.name: hints[f.name] for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in table.items():
        where = f"{prefix}{key}"
        if key not in known:
            keys = f"{', '.join(sorted(known))}{_meant(key, known, prefix, root or cls)}"
            raise ValueError(f"{source}: {where}: found an unknown key, expected one of {keys}")
        values[key] = _convert(known[key], value, source, where, root or cls)
    try:
        return cls(**values)
    except ValueError as error:
        text = str(error)
        raise ValueError(f"{source}: {text if '.' in text.split(':')[0] else prefix + text}") from None


def _meant(key: str, known: typing.Iterable[str], prefix: str, root: type) -> str:
    """The keys of other tables that are spelt so, or one of this table that is spelt nearly so; "" without any."""
    near = [f"{prefix}{name}" for name in difflib.get_close_matches(key, known, n=1)]
    tables = {name: kind for name, kind in typing.get_type_hints(root).items() if dataclasses.is_dataclass(kind)}
    same = [f"{name}.{key}" for name, kind in tables.items() if key in typing.get_type_hints(kind)]
    return f"; did you mean {' or '.join(same or near)}?" if same or near else ""


def _convert(kind: Any, value: Any, source: str, where: str, root: type) -> Any:
    if dataclasses.is_dataclass(kind) or kind is TemplateVariables:
        if not isinstance(value, dict):
            raise ValueError(f"{source}: {where}: found {value!r}, expected a table")
        if kind is TemplateVariables:
            return _variables(value, source)
        return build(typing.cast(type, kind), value, source, f"{where}.", root)
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)
        many = inner[-1] is ...  # of any length
        if not isinstance(value, list) or (not many and len(value) != len(inner)):
            expected = "a list" if many else f"a list of {len(inner)}"
            raise ValueError(f"{source}: {where}: found {value!r}, expected {expected}")
        inner = inner[:1] * len(value) if many else inner
        return tuple(_convert(k, v, source, where, root) for k, v in zip(inner, value, strict=True))
    if kind in (int, float) and type(value) is int and value.bit_length() > BITS:
        found = f"a whole number of {value.bit_length()} bits"
        raise ValueError(f"{source}: {where}: found {found}, expected {KINDS[kind]} of at most {BITS}")
    if kind is float and type(value) is int:
        return float(value)
    if type(value) not in (typing.get_args(kind) or (kind,)):
        raise ValueError(f"{source}: {where}: found {value!r}, expected {KINDS[kind]}")
    return value


def _variables(table: dict[str, Any], source: str) -> TemplateVariables:
    try:
        return TemplateVariables(table)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def parse_overrides(overrides: typing.Sequence[str], table: dict[str, Any]) -> dict[str, Any]:
    """`table` with every `table.key=value` applied."""
    for override in overrides:
        _apply(table, override)
    return table


def _apply(table: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if LONE_SURROGATE.search(override):  # what Python makes of an argument's other bytes
        raise ValueError(f"--set {override!r}: found bytes that are not UTF-8, expected UTF-8 text")
    parts = key.strip().split(".")
    if not equals or len(parts) != 2 or not all(parts):
        raise ValueError(f"--set {override}: found {override!r}, expected table.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):  # no TOML, or a number or brackets that Python does not read
        value = text
    if isinstance(value, date):  # no key is a date: run.date is text
        value = text
    target = table.setdefault(parts[0], {})
    if not isinstance(target, dict):
        raise ValueError(f"--set {override}: found {parts[0]} = {target!r}, expected a table")
    target[parts[1]] = value
