"""Files of another host, which arrive part by part, for a folder here."""

import shutil
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

from evidence.patience import retried_beside


async def arrive(parts: AsyncIterator[tuple[str, bytes]], folder: Path, patience_s: float) -> None:
    """Writes what arrives into `folder`: (file name, the next part of its bytes). A disk that refuses is tried again
    for `patience_s`."""
    async for name, content in parts:
        path = folder / name
        at = path.stat().st_size if path.exists() else 0
        await retried_beside(patience_s, partial(_put, path, at, content))


def _put(path: Path, at: int, content: bytes) -> None:
    """Writes the part that begins at `at`, over what an attempt before has left of it."""
    with path.open("r+b" if path.exists() else "w+b") as file:
        file.seek(at)
        file.truncate()
        file.write(content)


def keep(arrived: Path, folder: Path) -> None:
    """Copies the files. Content alone, so that whom the umask says may read them: the folder that they arrived in is
    nobody else's."""
    folder.mkdir(exist_ok=True)
    for path in arrived.iterdir():
        shutil.copyfile(path, folder / path.name)
