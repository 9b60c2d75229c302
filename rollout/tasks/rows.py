"""Reading a task's JSON lines, with errors that name the file and the line."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

Row = dict[str, str | None]


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


def parse_rows(text: str, source: str, keys: Iterable[str]) -> Iterator[tuple[int, Row]]:
    """Yields (line number from 1, row) for each line that is not blank; every row has exactly `keys`.

    Raises:
        ValueError: "SOURCE, line N: found ..., expected ..." at the first row that is malformed.
    """
    wanted = sorted(keys)
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, _parse_row(line, f"{source}, line {number}", wanted)


def _parse_row(line: str, where: str, wanted: list[str]) -> Row:
    expected = f"expected a JSON object with the keys {', '.join(wanted)}"
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: found no valid JSON ({error.msg}), {expected}") from error
    if isinstance(row, dict) and sorted(row) == wanted:
        return row
    keys = ", ".join(sorted(row)) or "(none)" if isinstance(row, dict) else ""
    found = f"the keys {keys}" if isinstance(row, dict) else f"a {type(row).__name__}"
    raise ValueError(f"{where}: found {found}, {expected}")


def text_field(row: Row, key: str, where: str) -> str:
    """A field that must be a text with something in it, stripped.

    Raises:
        ValueError: another type, or blank.
    """
    value = row[key]
    if isinstance(value, str) and value.strip():
        return value.strip()
    raise ValueError(f"{where}: found {key} = {value!r}, expected a text that is not blank")
