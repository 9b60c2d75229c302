"""Every row of a user's file with its place: what it became, or why it is none, so that a check sees all of them."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from typing import TypeVar
from unicodedata import normalize

from rollout.tasks.base import ProbePrompt, TaskPrompt, Turns
from rollout.tasks.config import Columns, TaskConfig
from rollout.tasks.context_rows import RowReader
from rollout.tasks.layouts import Layout, layout_of
from rollout.tasks.rows import Row
from rollout.tasks.tables import file_rows

P = TypeVar("P", TaskPrompt, ProbePrompt)
Placed = tuple[str, P | ValueError]  # a row's place in its file, and what it became
AROUND = re.compile(r"^[\s\"'\u201c\u2018\u00ab(]+|[\s.?!,:;\u2026\u3002\"'\u201d\u2019\u00bb)]+$")  # quotes, ends
FIRST_ROWS = 1000  # in which `columns_of` looks


def placed_rows(
    path: str, key: str, config: TaskConfig, read: Callable[[RowReader, Row, str], P]
) -> Iterator[Placed[P]]:
    """Every row of a file in turn, what it became or why it is none. ValueError for the whole file's faults."""
    reader: RowReader | None = None
    for where, row in file_rows(path, key):
        if isinstance(row, ValueError):
            yield where, row
            continue
        reader = reader or RowReader(config, layout_of(row, config.columns, path), path)
        try:
            yield where, read(reader, row, where)
        except ValueError as error:
            yield where, error


def columns_of(path: str, key: str, config: TaskConfig) -> tuple[Layout, list[str]]:
    """A file's layout, and the columns of its first rows that nothing reads.

    Raises:
        ValueError: no such file, no layout that fits, or no row; the first line's fault where every line has one; as
            `check_columns`.
    """
    check_columns(config)
    found = [row for _, row in islice(file_rows(path, key), FIRST_ROWS)]
    rows = [row for row in found if not isinstance(row, ValueError)]
    if not rows:
        fault = next((row for row in found if isinstance(row, ValueError)), None)
        raise fault or ValueError(f"{path}: found no rows, expected at least one")
    layout = layout_of(rows[0], config.columns, path)
    return layout, sorted({str(name) for row in rows for name in row} - layout.reads)


def check_columns(config: TaskConfig) -> None:
    """Looks no further than to the last name's first row.

    Raises:
        ValueError: a name in `[task.columns]` that no row has, where both files are given and every line is a row.
    """
    missing = {ours: name for ours, name in asdict(config.columns).items() if name != getattr(Columns(), ours)}
    for key, path in (("task.prompts_file", config.prompts_file), ("task.probe_file", config.probe_file)):
        for _, row in file_rows(path, key) if missing and path else ():
            missing = (
                {} if isinstance(row, ValueError) else {key: name for key, name in missing.items() if name not in row}
            )
            if not missing:
                return
    if missing and config.prompts_file and config.probe_file:
        ours, name = next(iter(missing.items()))
        raise ValueError(
            f"task.columns.{ours}: found {name!r}, expected a column of {config.prompts_file} or {config.probe_file}"
        )


def once(rows: Iterable[Placed[P]], ids: dict[str, str], asked: dict[Turns, str]) -> Iterator[Placed[P]]:
    """The rows, of which one with an earlier one's prompt_id is a fault, and so is a probe that asks what an earlier
    one asked, or what was trained on, whatever the system message. `ids` and `asked` are filled: the place of each
    prompt_id, and of each conversation, `folded`, of training rows as `unled`."""
    for where, row in rows:
        if isinstance(row, TaskPrompt):
            first = ids.setdefault(row.prompt_id, where)
            asked.setdefault(unled(row.turns), where)
            if first != where:
                row = ValueError(f"{where}: found prompt_id {row.prompt_id!r} of {first} again, expected each one once")
        elif isinstance(row, ProbePrompt):
            trained = asked.get(unled(row.turns))
            first = trained or asked.setdefault(folded(row.turns), where)
            if trained or first != where:  # both files may be the same one
                row = ValueError(f"{where}: found the question of {first} again, expected one that is only here")
        yield where, row


def trained_on(training: Iterable[TaskPrompt], probes: Sequence[ProbePrompt]) -> list[ProbePrompt]:
    """The probes that ask what is trained on, whatever the system message."""
    trained = {unled(prompt.turns) for prompt in training}
    return [probe for probe in probes if unled(probe.turns) in trained]


def folded(turns: Turns) -> Turns:
    """A conversation without what two spellings of one question differ by: case, width, spaces, and marks around it."""
    return tuple((role, AROUND.sub("", " ".join(normalize("NFKC", text).casefold().split()))) for role, text in turns)


def unled(turns: Turns) -> Turns:
    """`folded`, with an empty system message in the place of any, or of none: no row has that."""
    return (("system", ""), *(turn for turn in folded(turns) if turn[0] != "system"))


def all_of(rows: Iterable[Placed[P]], path: str, expected: str) -> tuple[P, ...]:
    """The prompts of rows without a fault.

    Raises:
        ValueError: the first fault, or no row at all.
    """
    prompts = []
    for _, row in rows:
        if isinstance(row, ValueError):
            raise row
        prompts.append(row)
    if not prompts:
        raise ValueError(f"{path}: found no rows, expected at least one {expected}")
    return tuple(prompts)
