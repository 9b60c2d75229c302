"""Reading a task's JSON lines, with errors that name the file and the line."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rollout.tasks.base import TaskPrompt

Row = dict[str, Any]
LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON's escapes can give one; a pair of them is one character by now
SHOWN = 80  # characters of a value in a message


def read_text(path: str, key: str) -> str:
    """The text of a user's file.

    Raises:
        ValueError: no such file, or one that is not UTF-8. `key` is the config key that named it.
    """
    if not Path(path).is_file():
        raise ValueError(f"{key}: found no file at {path!r}, expected a JSON lines file")
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: found bytes that are not UTF-8 ({error.reason}), expected UTF-8 text") from error


def parse_rows(text: str, source: str, keys: Iterable[str], optional: Iterable[str] = ()) -> Iterator[tuple[int, Row]]:
    """Yields (line number from 1, row) for each line that is not blank; a row has all of `keys` and maybe `optional`.

    Raises:
        ValueError: "SOURCE, line N: found ..., expected ..." at the first row that is malformed.
    """
    wanted, extra = set(keys), set(optional)
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, _parse_row(line, f"{source}, line {number}", wanted, extra)


def _parse_row(line: str, where: str, wanted: set[str], extra: set[str]) -> Row:
    maybe = f" and maybe {', '.join(sorted(extra))}" if extra else ""
    expected = f"expected a JSON object with the keys {', '.join(sorted(wanted))}{maybe}"
    row = read_json(line, where, expected)
    if isinstance(row, dict) and wanted <= set(row) <= wanted | extra:
        return row
    keys = ", ".join(sorted(row)) or "(none)" if isinstance(row, dict) else ""
    found = f"the keys {keys}" if isinstance(row, dict) else f"a {type(row).__name__}"
    raise ValueError(f"{where}: found {found}, {expected}")


def read_json(line: str, where: str, expected: str) -> Any:
    """The value of a line of JSON, also behind the mark that some programs write at the beginning of a file.

    Raises:
        ValueError: it is none, which ends with `expected`, or has a key twice, of which json keeps the last alone.
    """
    try:
        return json.loads(line.removeprefix("\ufeff"), object_pairs_hook=_object)
    except _Again as again:
        key = shown(again.key)
        raise ValueError(f"{where}: found the key {key} twice, expected each key of an object once") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: found no valid JSON ({error.msg}), {expected}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, a thousand brackets
        raise ValueError(f"{where}: found JSON that Python does not read ({error}), {expected}") from error


class _Again(Exception):
    """A key that one object has twice."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def _object(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [key for key, _ in pairs]
        raise _Again(next(key for place, key in enumerate(names) if key in names[:place]))
    return row


def text_field(row: Row, key: str, where: str) -> str:
    """A field that must be a text with something in it, stripped. ValueError as `checked_text`."""
    return checked_text(row[key], key, where)


def checked_text(value: Any, key: str, where: str) -> str:
    """A text with something in it, stripped; `key` names it in messages.

    Raises:
        ValueError: another type, blank, or no Unicode text, which no tokenizer takes.
    """
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: found {key} = {shown(value)}, expected a text that is not blank")
    if not value.isascii() and (lone := LONE_SURROGATE.search(value)):
        raise ValueError(
            f"{where}: found half a character, {lone[0]!r}, at place {lone.start() + 1} of {key}, expected Unicode text"
        )
    return value.strip()


def shown(value: Any) -> str:
    """A value in a message: its first characters."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def unique_prompts(located: Iterable[tuple[str, TaskPrompt]], source: str) -> tuple[TaskPrompt, ...]:
    """The prompts of (place in the file, prompt) pairs.

    Raises:
        ValueError: none at all, or a prompt_id that an earlier one has.
    """
    prompts: dict[str, TaskPrompt] = {}
    for where, prompt in located:
        if prompt.prompt_id in prompts:
            raise ValueError(f"{where}: found prompt_id {prompt.prompt_id!r} again, expected each one once")
        prompts[prompt.prompt_id] = prompt
    if not prompts:
        raise ValueError(f"{source}: found no rows, expected at least one training question")
    return tuple(prompts.values())
