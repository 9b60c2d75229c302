"""What a failure is about, in lines that a user reads."""

from collections.abc import Iterator

EXPECTED = (
    ValueError,
    RuntimeError,
    OSError,
    TimeoutError,
    ModuleNotFoundError,
)  # others are our own mistakes: a traceback

INTERRUPTED = 130  # the exit status of a command that Ctrl-C ended: as shells have it, 128 and the signal's number
PREEMPTED = 75  # the exit status of a run that was asked to stop, and is to be resumed: EX_TEMPFAIL of sysexits.h


class Preempted(Exception):
    """A run was asked to stop, and has."""


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors of a group, and of groups in it; an error by itself."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


def cause_of(error: BaseException) -> BaseException:
    """What an actor raised, without what Ray wraps around it."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, BaseException) else error


def explained(error: BaseException) -> tuple[list[str], int]:
    """A line for each cause, and the exit status: 2 where all of them are bad input, otherwise 1.

    Raises:
        the first of them that is our own mistake.
    """
    causes = [cause_of(leaf) for leaf in leaves(error)]
    for cause in causes:
        if not isinstance(cause, EXPECTED) or _is_ours(cause):
            raise cause
    lines = list(dict.fromkeys(printable(_line(cause)) for cause in causes))
    return lines, 2 if all(isinstance(cause, ValueError) for cause in causes) else 1


def printable(text: str) -> str:
    """Without what moves a terminal's cursor, colours it or turns text round: a server or a file may have put it there.
    Lines stay lines."""
    return "".join(mark if mark.isprintable() or mark == "\n" else " " for mark in text)


def _is_ours(error: BaseException) -> bool:
    """A module of this project's own that is not there: our own mistake."""
    name = error.name if isinstance(error, ModuleNotFoundError) else None
    return name is not None and name.partition(".")[0] in ("cluster", "evidence", "learner", "rollout")


def _line(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"found no package {error.name}, which this command needs: pip install 'edge-opd[run]' has all of them"
    return str(error)
