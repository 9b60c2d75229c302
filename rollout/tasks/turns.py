"""A row's conversation: a system message of its own, maybe, then user and assistant in turn."""

from typing import Any

from rollout.tasks.base import Turns
from rollout.tasks.rows import checked_text, shown

ROLES = {"system": "system", "user": "user", "assistant": "assistant", "human": "user", "gpt": "assistant"}
KEYS = (("role", "content"), ("from", "value"))  # of a turn, as most files have it and as ShareGPT has it
EMPTY: tuple[Any, ...] = (None, "", [], {})  # what a key may hold that says nothing


def read_turns(value: Any, key: str, where: str) -> Turns:
    """((role, content), ...) of a list of turns, stripped, each of a role that may stand there.

    Raises:
        ValueError: no list, a turn that is no text, or roles out of order; names the place, the turn and its key.
    """
    if not isinstance(value, list) or not value:
        raise ValueError(f"{where}: found {key} = {shown(value)}, expected a list of turns with role and content")
    turns = tuple(_turn(turn, f"{key}[{place}]", where) for place, turn in enumerate(value))
    first = turns[0][0] == "system"
    for place, (role, _) in enumerate(turns[first:], start=first):
        expected = ("user", "assistant")[(place - first) % 2]
        if role != expected:
            also = " or the system's" if place == 0 else ""
            raise ValueError(f"{where}: found {key}[{place}].role = {role!r}, expected the {expected}'s turn{also}")
    if len(turns) == first:
        raise ValueError(f"{where}: found a system message alone in {key}, expected a user turn after it")
    return turns


def read_reply(value: list[Any], key: str, where: str) -> str:
    """The text of a list of turns that is one turn of the assistant's: what others say beside it would be lost.

    Raises:
        ValueError: another list, or a turn that is no text.
    """
    turns = [_turn(turn, f"{key}[{place}]", where) for place, turn in enumerate(value)]
    if [role for role, _ in turns] != ["assistant"]:
        raise ValueError(f"{where}: found {key} = {shown(value)}, expected a text, or one turn of the assistant")
    return turns[0][1]


def last_role(value: Any) -> str:
    """Whose the last turn is, user's, assistant's or the system's; "" of what is no list of turns."""
    last = value[-1] if isinstance(value, list) and value and isinstance(value[-1], dict) else {}
    role = next((last[role] for role, _ in KEYS if isinstance(last.get(role), str)), "")
    return ROLES.get(role, "")


def unread_keys(turns: Any) -> set[str]:
    """The keys of a list of turns that hold something and that nothing reads, such as the thought beside an answer."""
    rich = (turn for turn in turns if isinstance(turn, dict) and len(turn) > 2) if isinstance(turns, list) else ()
    return {str(key) for turn in rich for key in turn.keys() - {*_keys(turn)} if turn[key] not in EMPTY}


def _keys(turn: Any) -> tuple[str, str] | tuple[()]:
    return next((keys for keys in KEYS if isinstance(turn, dict) and keys[0] in turn), ())


def _turn(turn: Any, key: str, where: str) -> tuple[str, str]:
    keys = _keys(turn)
    if not keys:
        raise ValueError(f"{where}: found {key} = {shown(turn)}, expected an object with role and content")
    role, content = (turn.get(name) for name in keys)
    if turn.get("tool_calls") or turn.get("function_call") or role in ("tool", "function"):
        raise ValueError(f"{where}: found a tool call in {key}, expected turns of text only")
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(f"{where}: found {key}.{keys[0]} = {shown(role)}, expected system, user or assistant")
    if isinstance(content, list):
        odd = next((part for part in content if isinstance(part, dict) and not isinstance(part.get("text"), str)), None)
        if odd is not None:
            kind, place = shown(odd.get("type")), f"{key}.{keys[1]}"
            raise ValueError(f"{where}: found a part of the type {kind} in {place}, expected turns of text only")
        raise ValueError(f"{where}: found a list in {key}.{keys[1]}, expected a text: join the texts of its parts")
    return ROLES[role], checked_text(content, f"{key}.{keys[1]}", where)
