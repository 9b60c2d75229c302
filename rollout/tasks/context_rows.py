"""A user's rows as prompts: each row a conversation with its own context, or a fault that names its place."""

import re
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property, lru_cache
from os.path import realpath
from pathlib import Path
from typing import Any

from rollout.tasks.base import ProbePrompt, TaskPrompt, Turns
from rollout.tasks.config import TaskConfig
from rollout.tasks.judges import JUDGES, is_number
from rollout.tasks.layouts import ANSWER, PLAIN, Layout, mapping
from rollout.tasks.rows import Row, checked_text, shown
from rollout.tasks.turns import read_reply, read_turns, unread_keys

TAG = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class RowReader:
    """Reads the rows of one file, all of one layout."""

    config: TaskConfig
    layout: Layout
    path: str

    def training(self, row: Row, where: str) -> TaskPrompt:
        """A training prompt with its context.

        Raises:
            ValueError: what is wrong with the row; begins with `where`.
        """
        own = self._read(row, where)
        turns, reply = self._turns(own, where)
        judge, answer = self._answer(own, where)
        first, *others = self._wordings(own, where) or (own.get("context"),)
        context, frame = self._context(own | {"context": first}, reply, where)
        wrong = self._texts(own, "wrong_contexts", where)
        if same := next((text for text in (context, *others) if text and text in wrong), ""):
            raise ValueError(
                f"{where}: found {self._called('wrong_contexts')}[{wrong.index(same)}] equal to the context, "
                "expected another: evidence is what tells them apart"
            )
        return TaskPrompt(
            prompt_id=self._prompt_id(own, where),
            question=turns[-1][1],
            context=frame.replace(PLAIN, context) if context else "",
            answer=answer,
            wrong_contexts=tuple(frame.replace(PLAIN, text) for text in wrong),
            before=turns[:-1],
            judge=judge,
            wordings=tuple(frame.replace(PLAIN, text) for text in others),
            unread=_unread(own),
        )

    def probe(self, row: Row, where: str) -> ProbePrompt:
        """A probe, which has an answer and no context, also where the row has one. ValueError as `training`."""
        own = self._read(row, where)
        turns, _ = self._turns(own, where)
        judge, answer = self._answer(own, where)
        if answer is None:
            name = self._called("answer")
            raise ValueError(f"{where}: found no {name}, expected one to hold the probe's responses against")
        tags = self._tags(own, where)
        return ProbePrompt("context", turns[-1][1], answer, turns[:-1], tags, judge, unread=_unread(own))

    def _called(self, key: str) -> str:
        """What the file calls a column of `Columns`."""
        return self.layout.names.get(key, key)

    def _read(self, row: Row, where: str) -> Row:
        try:
            return self.layout.read(row)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None

    def _turns(self, own: Row, where: str) -> tuple[Turns, str]:
        """x, and the assistant's last turn where the row's context is that, else ""."""
        asked = self.layout.asks
        given = [key for key in asked if own.get(key) is not None]
        if len(given) == 2:
            raise ValueError(f"{where}: found {' and '.join(map(self._called, given))}, expected one of the two")
        key = next(iter(given or [key for key in asked if key in own]), asked[0])
        value, name = own.get(key), self._called(key)
        if key == "question" and not isinstance(value, list):
            return (("user", checked_text(value, name, where)),), ""
        turns = read_turns(value, name, where)
        if turns[-1][0] == "user":
            return turns, ""
        if own.get("context") is value:
            return turns[:-1], turns[-1][1]
        told = own.get("context") is not None or own.get("context_file") is not None
        lines = mapping({key: name, "context": name})
        way = "leave it out" if told else f"with {lines} in [task.columns] that turn is the context"
        raise ValueError(f"{where}: found an assistant's turn at the end of {name}, expected the user's; {way}")

    def _context(self, own: Row, reply: str, where: str) -> tuple[str, str]:
        """r without its frame, and the frame; "" where the recipe allows it. reply: as `_turns` has it."""
        configured, value = self.config.context, own.get("context")
        frame = configured if PLAIN in configured else ANSWER if isinstance(value, list) else self.layout.frame
        name, of_file = self._called("context"), self._called("context_file")
        if own.get("context_file") is not None:
            if value is not None:
                raise ValueError(f"{where}: found {name} and {of_file}, expected one of the two")
            text = _text_of_file(self.path, own["context_file"], of_file, where)
            return checked_text(text, f"the text of {of_file}", where), frame
        if isinstance(value, list):
            if not reply and any(own.get(key) is value for key in self.layout.asks):
                raise ValueError(f"{where}: found no assistant's turn at the end of {name}, expected one: the context")
            return reply or read_reply(value, name, where), frame
        if value is None and configured and PLAIN not in configured:
            return configured.strip(), PLAIN
        if self.config.context_empty_allowed and (value is None or value == ""):
            return "", frame
        if value is None:
            places = " or ".join(self._called(key) for key in ("context", "context_file") if key in self.layout.names)
            raise ValueError(f"{where}: found no {name}, expected {places} in the row, or task.context for all rows")
        return checked_text(value, name, where), frame

    def _wordings(self, own: Row, where: str) -> tuple[str, ...]:
        """Of a context that is a list of texts; none of any other."""
        value, name = own.get("context"), self._called("context")
        if not isinstance(value, list) or any(isinstance(text, dict) for text in value):
            return ()
        texts = self._texts(own, "context", where)
        if len({*texts}) < len(texts):
            raise ValueError(f"{where}: found a text of {name} twice, expected wordings that differ")
        return texts

    def _answer(self, own: Row, where: str) -> tuple[str, str | None]:
        return read_answer(own.get("answer"), self._called("answer"), self.config.judge, where)

    def _texts(self, own: Row, key: str, where: str) -> tuple[str, ...]:
        """A list of texts, or one of them alone."""
        value, name = own.get(key), self._called(key)
        if value is None:
            return ()
        listed = value if isinstance(value, list) else [value]
        return tuple(checked_text(text, f"{name}[{place}]", where) for place, text in enumerate(listed))

    def _tags(self, own: Row, where: str) -> tuple[str, ...]:
        """They name rates: correct:TAG."""
        tags, name = tuple(dict.fromkeys(self._texts(own, "tags", where))), self._called("tags")
        for tag in tags:
            if not TAG.fullmatch(tag):
                raise ValueError(
                    f"{where}: found {name} with {shown(tag)}, expected words of letters, digits, _, . and -"
                )
        return tags

    @cached_property
    def _stem(self) -> str:
        return Path(self.path).stem  # which takes longer than to read a row

    def _prompt_id(self, own: Row, where: str) -> str:
        """The row's own, or its file's name with its place there."""
        value = own.get("prompt_id")
        if value is None:
            return f"{self._stem}-{where.rsplit(' ', 1)[1]}"
        whole = type(value) is float and value.is_integer()  # of parquet, a whole number's column with a null in it
        return str(int(value)) if whole or type(value) is int else checked_text(value, self._called("prompt_id"), where)


def _unread(own: Row) -> tuple[str, ...]:
    """The keys in a row's turns that nothing reads."""
    lists = [own[key] for key in ("messages", "question", "context") if isinstance(own.get(key), list)]
    return tuple(sorted({key for turns in lists for key in unread_keys(turns)})) if lists else ()


def read_answer(value: Any, name: str, judge: str, where: str) -> tuple[str, str | None]:
    """(judge, answer): a text is for `judge`, a number for number (boxed where that is `judge`), as is a text that is
    nothing but one for text, and {"regex": "..."} names its own. ("", None) where there is none. name: the column's.

    Raises:
        ValueError: another type, a judge that is not there, or an answer that it can hold nothing against.
    """
    if value is None or (isinstance(value, dict) and value and all(one is None for one in value.values())):
        return "", None  # some writers of parquet make an object of nulls of a missing one
    if isinstance(value, dict):
        named = {key: one for key, one in value.items() if one is not None}
        if len(named) != 1 or not set(named) <= set(JUDGES):
            raise ValueError(
                f"{where}: found {name} = {shown(value)}, expected one of {', '.join(JUDGES)} with its answer"
            )
        ((judge, value),) = named.items()
    elif isinstance(value, list):  # as SQuAD has them
        raise ValueError(
            f"{where}: found {name} = {shown(value)}, expected one, or of several any of which is right, a pattern "
            'such as {"regex": "Bob|Robert"}'
        )
    elif (_is_number(value) and judge != "boxed") or (judge == "text" and isinstance(value, str) and is_number(value)):
        judge = "number"
    answer = str(value) if _is_number(value) else checked_text(value, name, where)
    fault = JUDGES[judge].fault(answer)
    if fault:
        raise ValueError(f"{where}: found {name} = {shown(answer)} for the judge {judge} ({fault})")
    return judge, answer


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, Decimal)) and not isinstance(value, bool)


def _text_of_file(rows: str, name: Any, key: str, where: str) -> str:
    try:
        return _read_file(rows, checked_text(name, key, where))
    except (OSError, ValueError) as error:
        if str(error).startswith(where):
            raise
        why = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else getattr(error, "strerror", error)
        folder = Path(rows).parent
        raise ValueError(
            f"{where}: found {key} = {shown(name)} ({why}), expected a text file in {folder}, by its path from there"
        ) from None


@lru_cache(256)  # many rows may share a document
def _read_file(rows: str, name: str) -> str:
    """ValueError where it is not beside the rows or below: somebody else's rows are not to read what is here. In the
    hub's cache all files of a dataset are links into one folder."""
    path = Path(realpath(Path(rows).parent / name))
    if not any(path.is_relative_to(folder) for folder in (realpath(Path(rows).parent), Path(realpath(rows)).parent)):
        raise ValueError("it is elsewhere")
    if path.exists() and not (path.is_file() or path.is_dir()):  # a pipe would wait for a writer for ever
        raise ValueError("no regular file")
    return path.read_text(encoding="utf-8-sig")
