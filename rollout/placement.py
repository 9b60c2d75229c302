"""Where r stands among the turns of x: four places, each a function of the two. Turns end with a user's."""

from collections.abc import Callable

from rollout.tasks.base import Turns


def _system(turns: Turns, r: str) -> Turns:
    """After x's own system message where it has one, so that both prompts share it, else in the place of the
    template's default."""
    if turns[0][0] == "system":
        return (("system", f"{turns[0][1]}\n\n{r}"), *turns[1:])
    return (("system", r), *turns)


def _user(turns: Turns, r: str) -> Turns:
    first = next(place for place, (role, _) in enumerate(turns) if role == "user")
    return _before_text(turns, first, r)


def _before_last_user(turns: Turns, r: str) -> Turns:
    return _before_text(turns, len(turns) - 1, r)


def _own_turn(turns: Turns, r: str) -> Turns:
    return (*turns[:-1], ("user", r), turns[-1])


def _before_text(turns: Turns, place: int, r: str) -> Turns:
    role, text = turns[place]
    return (*turns[:place], (role, f"{r}\n\n{text}"), *turns[place + 1 :])


POSITIONS: dict[str, Callable[[Turns, str], Turns]] = {
    "system": _system,
    "user": _user,
    "before_last_user": _before_last_user,
    "own_turn": _own_turn,
}


def placed(turns: Turns, r: str, position: str) -> Turns:
    """The turns with r at `position`, a key of `POSITIONS`; a blank r leaves them as they are."""
    assert turns and turns[-1][0] == "user", turns
    return POSITIONS[position](turns, r) if r.strip() else turns
