"""What a file's rows are called: from the layouts that people have to the keys of `Columns`, without conversion."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from rollout.tasks.boxed import fault_of_gold
from rollout.tasks.config import Columns
from rollout.tasks.openthoughts import LAYOUTS as OPENTHOUGHTS
from rollout.tasks.openthoughts import Example
from rollout.tasks.problems import CONTEXT, QUESTION
from rollout.tasks.rows import Row

PLAIN = "{context}"
ANSWER = (
    "Here is a good answer to what the user asks.\n\n{context}\n\n"
    "Answer in your own words, without mentioning that you were given it."
)


@dataclass(frozen=True)
class Layout:
    """needs: the columns that tell it, the first with `mark` in it. read: a row under the names of `Columns`, or
    ValueError. reads: the file's columns. frame: the words around a context."""

    name: str
    needs: tuple[str, ...]
    read: Callable[[Row], Row]
    reads: frozenset[str]
    frame: str = PLAIN
    mark: str = ""

    def fits(self, row: Row) -> bool:
        """Whether it has what the layout needs."""
        return all(name in row for name in self.needs) and self.mark in str(row[self.needs[0]])


def _columns(name: str, needs: tuple[str, ...], columns: Columns, frame: str = PLAIN) -> Layout:
    names = asdict(columns)

    def read(row: Row) -> Row:
        return {ours: row[theirs] for ours, theirs in names.items() if theirs in row}

    return Layout(name, needs, read, frozenset(names.values()), frame)


def _openthoughts(name: str, mark: str = "") -> Layout:
    layout = OPENTHOUGHTS[name]

    def read(row: Row) -> Row:
        try:
            example = layout.read({column: row.get(column) for column in layout.columns})
        except (KeyError, TypeError, AttributeError):
            raise ValueError(f"found no texts in {' and '.join(layout.columns)}, expected OpenThoughts' own") from None
        return _problem(example)

    reads = frozenset((*layout.columns, "system"))
    return Layout(f"OpenThoughts ({name})", layout.columns, read, reads, CONTEXT.replace("{solution}", PLAIN), mark)


def _problem(example: Example) -> Row:
    """A row without a problem or a reasoning lacks that key; an answer that no box can equal is none."""
    question = QUESTION.format(question=example.problem) if example.problem else None
    answer = {"boxed": example.answer} if example.answer and not fault_of_gold(example.answer) else None
    found: dict[str, Any] = {"question": question, "context": example.reasoning or None, "answer": answer}
    return {key: value for key, value in found.items() if value is not None}


# Read in this order: the first whose columns a file's first row has.
LAYOUTS = (
    _columns("messages", ("messages",), Columns()),
    _columns("question", ("question",), Columns()),
    _columns("prompt, completion", ("prompt", "completion"), Columns(question="prompt", context="completion"), ANSWER),
    _columns("prompt", ("prompt",), Columns(question="prompt")),
    _openthoughts("metadata"),
    _openthoughts("default", mark="<|begin_of_thought|>"),
)


def layout_of(row: Row, columns: Columns, source: str) -> Layout:
    """The layout of a file, by its first row: that of `columns` where they rename anything, else one of `LAYOUTS`.

    Raises:
        ValueError: none has these columns; names the file.
    """
    own = [_columns("task.columns", (name,), columns) for name in (columns.messages, columns.question)]
    known = LAYOUTS if columns == Columns() else own
    fitting = [layout for layout in known if layout.fits(row)]
    if not fitting:
        expected = " or ".join(" and ".join(layout.needs) for layout in known)
        raise ValueError(
            f"{source}: found the columns {', '.join(map(str, row)) or '(none)'}, expected {expected}; [task.columns] "
            "maps other names"
        )
    return fitting[0]
