"""Append-only files of JSON lines: one rule for every reader and every writer.

A line exists once its newline does. What follows the last newline was torn off by a kill or a full disk, and never
happened: a reader skips it, and a writer cuts it off before it appends.
"""

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from evidence.files import fsync_folder, naming

T = TypeVar("T")
Line = Mapping[str, Any]
LOCK_S = 60.0  # for which a writer waits for another one; a line takes milliseconds
BLOCK = 1 << 16  # bytes that are read at once to find a file's last newline
BITS, MOST_DIGITS = 64, 20  # of a whole number in a file; what is larger is no count, no time and no size
MOST = 2.0**53  # of a time or a count that sums, floats and microseconds are made of


def from_json(text: str | bytes) -> Any:
    """The value of a JSON text of a run.

    Raises:
        ValueError: it is no JSON, has a whole number of more than `BITS` bits, or is nested too deep to read.
    """
    try:
        return json.loads(text, parse_int=_whole)
    except RecursionError:
        raise ValueError("found JSON that is nested too deep") from None


def is_amount(value: float) -> bool:
    """Whether sums, rounded numbers and microseconds can be made of it: it is finite, and not beyond `MOST`."""
    return abs(value) <= MOST  # not a number is not


def _whole(digits: str) -> int:
    if len(digits) <= MOST_DIGITS and -(1 << BITS - 1) <= (number := int(digits)) < 1 << BITS - 1:
        return number
    few = digits if len(digits) <= MOST_DIGITS else f"{digits[:MOST_DIGITS]}..."
    raise ValueError(f"found the whole number {few} of {len(digits.lstrip('-'))} digits, expected one of {BITS} bits")


def read_lines(path: str | os.PathLike[str], parse: Callable[[Any], T], expected: str) -> Iterator[T]:
    """What `parse` makes of each whole line's value, in order; nothing where there is no file.

    Raises:
        ValueError: `from_json` refuses a line, or `parse` raised ValueError, KeyError, TypeError or AttributeError on
            it. The message names the file, the line's number, what was found, and `expected`.
    """
    content = b""
    with suppress(FileNotFoundError):
        content = Path(path).read_bytes()
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            parsed = parse(from_json(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{os.fspath(path)}: line {number}: found {line[:200]!r} ({error}), expected {expected}"
            ) from error
        yield parsed


class Appender:
    """A file whose lock is held, and whose last line is whole."""

    def __init__(self, path: str, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor
        self._whole = _whole_size(descriptor)
        if self._whole < os.fstat(descriptor).st_size:
            os.ftruncate(descriptor, self._whole)

    def append(self, *lines: Line) -> None:
        """One write and one fsync. OSError that names the file; the file is then as it was before."""
        data = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        try:
            if os.write(self._descriptor, data) != len(data):
                raise OSError(f"{self._path}: found no room for a line of {len(data)} bytes")
            os.fsync(self._descriptor)
        except OSError as error:
            os.ftruncate(self._descriptor, self._whole)
            raise naming(error, self._path, "cannot append") from error
        self._whole += len(data)


@contextmanager
def appending(path: str | os.PathLike[str]) -> Iterator[Appender]:
    """Within it no other process appends to `path`, which is made where it is not there.

    Raises:
        TimeoutError: another process has been appending for `LOCK_S` seconds; names the file.
    """
    name = os.fspath(path)
    is_new = not os.path.exists(name)
    descriptor = os.open(name, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        _lock(descriptor, name)
        if is_new:
            fsync_folder(os.path.dirname(os.path.abspath(name)))
        yield Appender(name, descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, name: str) -> None:
    end = time.monotonic() + LOCK_S
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise TimeoutError(
                    f"{name}: another process has been appending to it for {LOCK_S:g} s; it may be stopped"
                ) from None
            time.sleep(0.005)


def append_line(path: str | os.PathLike[str], line: Line) -> None:
    """Adds one line, whole or not at all."""
    with appending(path) as file:
        file.append(line)


def _whole_size(descriptor: int) -> int:
    """Where the last whole line ends."""
    end = os.fstat(descriptor).st_size
    while end:
        start = max(0, end - BLOCK)
        found = os.pread(descriptor, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
