"""A disk that refuses for a while, as the libraries that write a model speak of it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError

from evidence.patience import retried

T = TypeVar("T")
NEVER = (FileNotFoundError, NotADirectoryError, IsADirectoryError)  # what trying again does not mend
# What torch says of a disk that is full, by the format of the file ("unexpected pos 64 vs 0"), and safetensors.
REFUSED = ("inline_container.cc", "write(): fd", "I/O error")


def written(seconds: float, path: str | Path, write: Callable[[], T]) -> T:
    """What `write` returns, which writes at `path` anew each time, as `retried` for `seconds`."""

    def attempt() -> T:
        try:
            return write()
        except (RuntimeError, SafetensorError) as error:
            if not any(sign in str(error) for sign in REFUSED):
                raise
            raise OSError(f"{path}: the disk refused it: {str(error).partition(chr(10))[0]}") from error

    return retried(seconds, attempt, NEVER)


def read(seconds: float, look: Callable[[], T]) -> T:
    """As `retried`; a file that is not there will not come."""
    return retried(seconds, look, (FileNotFoundError,))


class PatientFiles:
    """Around DeepSpeed's checkpoint engine: a file that a rank writes or reads is tried again by that rank alone, while
    the others wait where they meet."""

    def __init__(self, engine: Any, seconds: float) -> None:
        self._engine, self._seconds = engine, seconds

    def save(self, state_dict: Any, path: str) -> None:
        written(self._seconds, path, partial(self._engine.save, state_dict, path))

    def load(self, path: str, map_location: Any = None) -> Any:
        return read(self._seconds, partial(self._engine.load, path, map_location=map_location))

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        written(self._seconds, path, partial(self._engine.makedirs, path, exist_ok=exist_ok))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)
