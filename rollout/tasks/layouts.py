"""What a file's rows are called: from the layouts that people have to the keys of `Columns`, without conversion."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from rollout.tasks.boxed import fault_of_gold
from rollout.tasks.config import Columns
from rollout.tasks.openthoughts import LAYOUTS as OPENTHOUGHTS
from rollout.tasks.openthoughts import NOTHING, Example
from rollout.tasks.problems import CONTEXT, QUESTION
from rollout.tasks.rows import Row
from rollout.tasks.turns import last_role

PLAIN = "{context}"
ANSWER = (
    "Here is a good answer to what the user asks.\n\n{context}\n\n"
    "Answer in your own words, without mentioning that you were given it."
)


@dataclass(frozen=True)
class Layout:
    """needs: the columns that tell it, the first with `mark` in it. read: a row under the names of `Columns`, or
    ValueError. names: from those names to the file's own, as messages have them. reads: the file's columns. frame: the
    words around a context."""

    name: str
    needs: tuple[str, ...]
    read: Callable[[Row], Row]
    names: Mapping[str, str]
    reads: frozenset[str]
    frame: str = PLAIN
    mark: str = ""

    @property
    def asks(self) -> tuple[str, str]:
        """messages and question, first the one that its columns have."""
        has_turns = self.names.get("messages") == self.needs[0]
        return ("messages", "question") if has_turns else ("question", "messages")

    def fits(self, row: Row) -> bool:
        """Whether it has what the layout needs."""
        return all(name in row for name in self.needs) and self.mark in str(row[self.needs[0]])


def _columns(name: str, needs: tuple[str, ...], columns: Columns, frame: str = PLAIN) -> Layout:
    names = asdict(columns)

    def read(row: Row) -> Row:
        return {ours: row[theirs] for ours, theirs in names.items() if theirs in row}

    return Layout(name, needs, read, names, frozenset(names.values()), frame)


def _openthoughts(name: str, names: Mapping[str, str], mark: str = "") -> Layout:
    layout = OPENTHOUGHTS[name]

    def read(row: Row) -> Row:
        columns = " and ".join(layout.columns)
        try:
            example = layout.read({column: row.get(column) for column in layout.columns})
        except (KeyError, TypeError, AttributeError):
            example = NOTHING
        if example == NOTHING:
            raise ValueError(f"found no texts in {columns}, expected OpenThoughts' own")
        return _problem(example)

    reads, frame = frozenset(layout.columns), CONTEXT.replace("{solution}", PLAIN)
    return Layout(f"OpenThoughts ({name})", layout.columns, read, names, reads, frame, mark)


def _problem(example: Example) -> Row:
    """A row without a problem or a reasoning lacks that key; an answer that no box can equal is none."""
    question = QUESTION.format(question=example.problem) if example.problem else None
    answer = {"boxed": example.answer} if example.answer and not fault_of_gold(example.answer) else None
    found: dict[str, Any] = {"question": question, "context": example.reasoning or None, "answer": answer}
    return {key: value for key, value in found.items() if value is not None}


_METADATA = {
    "question": "problem",
    "context": "deepseek_reasoning",
    "answer": "\\boxed{} in ground_truth_solution or deepseek_solution",
}
_DEFAULT = {
    "question": "the user's turn of conversations",
    "context": "<|begin_of_thought|> in conversations",
    "answer": "\\boxed{} in conversations",
}
# Read in this order: the first whose columns a file's first row has.
LAYOUTS = (
    _columns("messages", ("messages",), Columns()),
    _columns("question", ("question",), Columns()),
    _columns("prompt, completion", ("prompt", "completion"), Columns(question="prompt", context="completion"), ANSWER),
    _columns("prompt", ("prompt",), Columns(question="prompt")),
    _openthoughts("metadata", _METADATA),
    _openthoughts("default", _DEFAULT, mark="<|begin_of_thought|>"),
)


def layout_of(row: Row, columns: Columns, source: str) -> Layout:
    """The layout of a file, by its first row: that of `columns` where they rename anything, else one of `LAYOUTS`, with
    what is renamed beside the columns that make it. One mapping is for two files, which may be of two layouts.

    Raises:
        ValueError: none has these columns; names the file.
    """
    renamed = {ours: name for ours, name in asdict(columns).items() if name != getattr(Columns(), ours)}
    frame = ANSWER if columns.context == "completion" else PLAIN
    makes = [renamed[ours] for ours in ("messages", "question") if ours in renamed]
    own = [_columns("task.columns", (name,), columns, frame) for name in makes]
    known = [*own, *(_renamed(layout, renamed) for layout in LAYOUTS)] if renamed else LAYOUTS
    fitting = [layout for layout in known if layout.fits(row) and not _overruled(layout, renamed, row)]
    if not fitting:
        marks = (" and ".join(layout.needs) + (f" with {layout.mark}" if layout.mark else "") for layout in known)
        needed = dict.fromkeys(marks)
        chat = next((name for name, value in row.items() if last_role(value)), None)
        keys = ("messages", "context") if chat and last_role(row[chat]) == "assistant" else ("messages",)
        raise ValueError(
            f"{source}: found the columns {', '.join(map(str, row)) or '(none)'}, expected {' or '.join(needed)}; "
            f"[task.columns] maps other names{': ' + mapping(dict.fromkeys(keys, chat)) if chat else ''}"
        )
    return fitting[0]


def _renamed(layout: Layout, renamed: Mapping[str, str]) -> Layout:
    """With other names for what does not make it; in a row without such a column the layout's own name counts."""
    laid = {ours: name for ours, name in renamed.items() if layout.names.get(ours) not in layout.needs}

    def read(row: Row) -> Row:
        return layout.read(row) | {ours: row[name] for ours, name in laid.items() if name in row}

    return replace(layout, read=read, names={**layout.names, **laid}, reads=layout.reads | {*laid.values()})


def _overruled(layout: Layout, renamed: Mapping[str, str], row: Row) -> bool:
    """Whether the row has a column that is renamed to what another one is in the layout."""
    return any(layout.names.get(ours) in {*layout.needs} - {name} and name in row for ours, name in renamed.items())


def mapping(names: Mapping[str, str]) -> str:
    """The lines of `[task.columns]` for these names, beside each other."""
    return " and ".join(f'{ours} = "{theirs}"' for ours, theirs in names.items())
