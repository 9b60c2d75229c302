"""Whether a template renders x, and whether r arrives in (x, r): as it was written, and without changing what follows.

x alone is rendered first: what fails there is the template's, and not r's.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

from rollout.placement import POSITIONS, placed
from rollout.tasks.base import Turns
from rollout.template import PRIVATE_USE, ChatTemplate, Message, Refusal, messages
from rollout.thinking import answer_of

MARK = "evidence-marker"
NO_TEXT = chr(PRIVATE_USE)  # stands for r, and is no part of any
_QUESTION = "a question about evidence"
_ABOUT = {"name": MARK, "description": MARK, "parameters": {"type": "object", "properties": {}}}
# What a template may need beside messages, as those have it that are given it.
_NEEDS: dict[str, list[Any]] = {
    "tools": [[], [{"type": "function", "function": _ABOUT, **_ABOUT}]],
    "documents": [[], [{"title": MARK, "text": MARK, "content": MARK}]],
}
R = "{r}"  # in a difference, in the place of r, which others may not be shown
_SHOWN, _LONG = 60, 300  # characters of a text in a message, and of a template's own


@dataclass(frozen=True)
class Difference:
    """What (x, r) has beside r in the place of what x has there; both empty where r is all that differs."""

    x: str
    context: str  # with {r} wherever r stands

    def __str__(self) -> str:
        placed = _in_words(self.context)
        return f"{placed} stands in the place of {_in_words(self.x)}" if self.x else f"the added text is {placed}"


def _in_words(text: str) -> str:
    """What stands before, between and after r, and r as who wrote it knows it."""
    said: list[str] = []
    for place, part in enumerate(text.split(R)):
        said += ["the context"] * (place > 0) + [repr(shortened(part))] * bool(part)
    return " + ".join(said)


def require_rendered(template: ChatTemplate) -> None:
    """ValueError, which says what the template needs, unless it renders one user message and shows its text."""
    try:
        shows = MARK in template.text((("user", MARK),))
    except Refusal as error:
        need = _need(template, error.said)
        if not need:
            raise
        raise ValueError(f"{template.model}: {need}") from error
    if not shows:
        raise ValueError(
            f"{template.model}: found a chat template that does not show a user's text"
            f"{', which it takes as a list of parts' * _takes_parts(template)}, expected one that does"
        )
    require_defined(template, (("user", MARK),))


def require_defined(template: ChatTemplate, turns: Turns) -> None:
    """ValueError where the template prints a variable in this conversation that has no value."""
    for name in sorted(template.printed_as_nothing(messages(turns))):
        raise ValueError(
            f"{template.model}: found a chat template that prints the variable {name!r}, which nothing defines, "
            f"expected template.{name}"
        )


def _need(template: ChatTemplate, said: str) -> str:
    """What a template that refuses a user's message needs, where that can be found out."""
    for name, tries in _NEEDS.items():
        if any(template.renders(messages((("user", MARK),)), **dict[str, Any]({name: given})) for given in tries):
            return f"found a chat template that needs {name} ({said}), expected one that renders a conversation without"
    if _takes_parts(template):
        return f"found a chat template that takes a text as a list of parts ({said}), expected one that takes texts"
    missing = [name for name in template.own_variables - template.variables.keys() if f"'{name}'" in said]
    if missing:
        return f"found a chat template that needs the variable {missing[0]!r} ({said}), expected template.{missing[0]}"
    return ""


def _takes_parts(template: ChatTemplate) -> bool:
    conversation: list[Message] = [{"role": "user", "content": [{"type": "text", "text": MARK}]}]
    return template.renders(conversation, shows=MARK)


def require_place(template: ChatTemplate, position: str) -> None:
    """ValueError unless r arrives at `position` of a short conversation; names the positions where it does."""
    fault = _fault(template, position)
    if not fault:
        return
    others = [f'"{other}"' for other in POSITIONS if other != position and not _fault(template, other)]
    wanted = f"one of {', '.join(others)}" if others else "another model: the context arrives at no position"
    raise ValueError(
        f'{template.model}: {fault}, expected one that shows it (rollout.context_position = "{position}": try {wanted})'
    )


def _fault(template: ChatTemplate, position: str) -> str:
    """What becomes of r there, or nothing where it arrives."""
    try:
        text = template.text(placed((("user", _QUESTION),), MARK, position))
    except Refusal as error:
        return f"found a chat template that refuses the context ({error.said})"
    return "" if MARK in text else "found a chat template that leaves the context out"


@dataclass(frozen=True)
class OwnText:
    """What the template itself says in x, without special tokens and the names of roles; "" where it says nothing."""

    text: str
    stays: bool  # beside r, in (x, r)

    def __str__(self) -> str:
        where = "with the context and without it" if self.stays else "and leaves out all or part of it beside a context"
        return f"the chat template adds a text of its own, {where}: {shortened(self.text)!r}"

    def is_replaced(self, found: Difference) -> bool:
        """Whether the difference says already that the context stands in the place of the whole text."""
        return not self.stays and bool(self.text) and all(line in found.x for line in self.text.splitlines())


def own_text(template: ChatTemplate, position: str, tokens: Collection[str]) -> OwnText:
    """Before the question. tokens: those that stand for no text, such as a role's mark."""
    x, with_r = (
        _sentences(template.text(placed((("user", _QUESTION),), r, position)).partition(_QUESTION)[0], tokens)
        for r in ("", MARK)
    )
    return OwnText(x, stays=x in with_r)


def own_end(template: ChatTemplate, tokens: Collection[str]) -> OwnText:
    """After the question, in the user's turn: the same in x and in (x, r), as `require_context` has it."""
    x = template.text((("user", _QUESTION),), generation_prompt=False)
    return OwnText(_sentences(x.rpartition(_QUESTION)[2], tokens), stays=True)


def _sentences(text: str, tokens: Collection[str]) -> str:
    for token in sorted(tokens, key=len, reverse=True):
        text = text.replace(token, "\n")
    return "\n".join(line.strip() for line in text.splitlines() if len(line.split()) > 1)


def shortened(text: str) -> str:
    """Its beginning and its end where it is long."""
    return text if len(text) <= _LONG else f"{text[: _LONG // 2]} ... {text[-_LONG // 2 :]}"


def require_texts(x: str, turns: Turns) -> None:
    """ValueError unless the text of every turn is in x as it was written; of an assistant's, what follows its thought,
    which many templates take away."""
    for role, text in turns:
        written = (answer_of(text) if role == "assistant" else text).strip()
        if written not in x:
            raise ValueError(
                f"found a text of the role {role!r} that does not arrive in the prompt as it is written "
                f"({_where_cut(x, written)}), expected it whole"
            )


def require_context(x: str, context: str, without: str, r: str, question: str) -> None:
    """ValueError unless r is in (x, r) as it was written, and what follows the question is what follows it in x.

    x, context, without: x, (x, r), and (x, r) with `NO_TEXT` in the place of r, each as text.
    """
    r, question = r.strip(), question.strip()
    if context.count(r) <= without.count(r):
        raise ValueError(
            f"found a context that does not arrive as it is written ({_where_cut(context, r)}), expected it whole"
        )
    if context == x:
        raise ValueError(
            f"found a context that the chat template itself says without it ({shortened(r)!r}): both prompts are the "
            "same, expected one that changes the prompt"
        )
    tail, context_tail = (text.rpartition(question)[2] for text in (x, context))
    if tail != context_tail:
        raise ValueError(
            f"found {context_tail[:_SHOWN]!r} after the question in the prompt with the context and {tail[:_SHOWN]!r} "
            "in the one without, expected the same: the context changes how the answer begins"
        )


def difference(x: str, context: str, r: str) -> Difference:
    """What tells (x, r) from x beside r, which is in (x, r)."""
    r = r.strip()
    return min((_around(x, context, r, place) for place in _places(context, r)), key=lambda d: len(d.x + d.context))


def _places(text: str, part: str) -> Iterator[int]:
    place = text.find(part)
    while place >= 0:
        yield place
        place = text.find(part, place + 1)


def _around(x: str, context: str, r: str, place: int) -> Difference:
    before, after = context[:place], context[place + len(r) :]
    head = _common(x, before)
    tail = _common(x[head:][::-1], after[::-1])
    there = f"{before[head:].replace(r, R)}{R}{after[: len(after) - tail].replace(r, R)}"
    return Difference(x[head : len(x) - tail].replace(r, R), there)


def _common(one: str, other: str) -> int:
    """How many characters both begin with."""
    if one.startswith(other):  # as most templates have it
        return len(other)
    return _last(min(len(one), len(other)), lambda size: one[:size] == other[:size])


def _where_cut(text: str, r: str) -> str:
    """The first words of r that are not there, with some before them."""
    if r in text:
        return f"{shortened(r)!r} is there only where something else says it"
    size = _last(len(r), lambda size: r[:size] in text)
    return f"{r[max(0, size - 20) : size + 20]!r} is not there"


def _last(most: int, holds: Callable[[int], bool]) -> int:
    """The last number, up to `most`, for which it holds; it holds for 0, and for none after one where it does not."""
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
