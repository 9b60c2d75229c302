"""Files of another host, which arrive part by part, for a folder here."""

import shutil
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from evidence.patience import remove_beside, retried_beside


async def arrive(
    parts: AsyncIterator[tuple[str, bytes]], rest: Callable[[], Awaitable[object]], folder: Path, patience_s: float
) -> None:
    """The files of `folder`, once all parts have come, (file name, the next part of its bytes), and the rest is done.
    A disk that refuses is tried again for `patience_s`."""
    async with _room_beside(folder, patience_s) as arrived:
        sizes = Counter[str]()
        async for name, content in parts:
            path = arrived / name
            await retried_beside(patience_s, path, partial(_put, path, sizes[name], content))
            sizes[name] += len(content)
        await rest()
        await _keep(arrived, folder, patience_s)


@asynccontextmanager
async def _room_beside(folder: Path, patience_s: float) -> AsyncIterator[Path]:
    """A folder beside `folder` for what arrives, which is gone afterwards."""
    make = partial(tempfile.mkdtemp, dir=folder.parent, prefix=".export-")
    room = Path(await retried_beside(patience_s, folder.parent, make))
    try:
        yield room
    finally:
        await remove_beside(room)


def _put(path: Path, at: int, content: bytes) -> None:
    """Writes the part that begins at `at`, over what an attempt before has left of it."""
    with path.open("r+b" if path.exists() else "w+b") as file:
        file.seek(at)
        file.truncate()
        file.write(content)


async def _keep(arrived: Path, folder: Path, patience_s: float) -> None:
    """Copies the files, each as patiently. Content alone, so that whom the umask says may read them: the folder that
    they arrived in is nobody else's."""
    await retried_beside(patience_s, folder, partial(folder.mkdir, exist_ok=True))
    for path in await retried_beside(patience_s, arrived, lambda: list(arrived.iterdir())):
        await retried_beside(patience_s, folder / path.name, partial(shutil.copyfile, path, folder / path.name))
