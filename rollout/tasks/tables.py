"""Rows of a user's file, JSON lines or parquet, one at a time: a large file is never in memory as text."""

from collections.abc import Iterator
from pathlib import Path

from rollout.tasks.parquet import open_parquet, parquet_rows
from rollout.tasks.rows import Row, read_json

PARQUET = (".parquet", ".pq")
PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")
Found = tuple[str, Row | ValueError]  # the row's place, as messages name it, and the row or why it is none


def file_rows(path: str, key: str) -> Iterator[Found]:
    """Every row of a file; `key` is the config key that named it. A row of parquet has every column, maybe with None.

    A line that is no row is yielded as its error, so that a check sees all of them.

    Raises:
        ValueError: no such file, or one that is neither UTF-8 text nor parquet.
    """
    if Path(path).is_dir():
        raise ValueError(f"{key}: found a folder at {path!r}, expected one file of JSON lines or parquet")
    if Path(path).suffix.lower() in PACKED:
        raise ValueError(f"{key}: found a packed file at {path!r}, expected JSON lines or parquet: unpack it first")
    if not Path(path).is_file():
        raise ValueError(f"{key}: found no file at {path!r}, expected JSON lines or parquet")
    return _numbered(path) if Path(path).suffix.lower() in PARQUET else _json_rows(path)


def _json_rows(path: str) -> Iterator[Found]:
    with Path(path).open("rb") as file:  # by bytes: a line ends at \n alone
        for number, line in enumerate(file, start=1):
            if line.strip():
                where = f"{path}, line {number}"
                yield where, _parsed(line, where)


def _parsed(line: bytes, where: str) -> Row | ValueError:
    try:
        row = read_json(line.decode("utf-8"), where, "expected a JSON object on one line")
    except UnicodeDecodeError as error:
        return ValueError(f"{where}: found bytes that are not UTF-8 ({error.reason}), expected UTF-8 text")
    except ValueError as error:
        return error
    if isinstance(row, dict):
        return row
    return ValueError(f"{where}: found a {type(row).__name__}, expected a JSON object")


def _numbered(path: str) -> Iterator[Found]:
    with open_parquet(path) as parquet:
        for number, row in enumerate(parquet_rows(parquet, path), start=1):
            yield f"{path}, row {number}", row
