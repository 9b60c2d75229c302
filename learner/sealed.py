"""What a checkpoint consists of: the size and the SHA-256 of each file, as the rank that wrote it reports them.

A file is one rank's: that of its name, and of rank 0 where it names none (DeepSpeed's, `KeptWeights`', `Ema`'s).
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evidence.files import file_sha256, fsync_folder

_RANK = re.compile(r"(?:zero_pp|kept)[-_]rank[-_](\d+)")


@dataclass(frozen=True)
class SealedFile:
    """One file of a checkpoint's folder."""

    name: str
    size: int  # bytes
    sha256: str


def owner(name: str) -> int:
    """The rank that writes the file of this name."""
    found = _RANK.search(name)
    return int(found[1]) if found else 0


def seal(folder: Path, rank: int) -> list[SealedFile]:
    """The rank's files, which are on the disk from now on, also after the power failed. OSError names what is not."""
    own = sorted(path for path in folder.iterdir() if path.is_file() and owner(path.name) == rank)
    sealed = [SealedFile(path.name, path.stat().st_size, _on_disk(path)) for path in own]
    fsync_folder(str(folder))
    fsync_folder(str(folder.parent))
    return sealed


def _on_disk(path: Path) -> str:
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return file_sha256(path)


def faults(folder: Path, files: Sequence[SealedFile]) -> list[str]:
    """What is not as it was sealed, a line each."""
    return [fault for fault in (_fault(folder / file.name, file) for file in files) if fault]


def _fault(path: Path, sealed: SealedFile) -> str:
    if fault := size_fault(path, sealed):
        return fault
    found = file_sha256(path)
    return "" if found == sealed.sha256 else f"{path}: sha256: found {found}, expected {sealed.sha256}"


def size_fault(path: Path, sealed: SealedFile) -> str:
    """What a look at the folder shows: a file that is missing or cut short."""
    if not path.is_file():
        return f"{path}: found no such file, expected {sealed.size} bytes"
    found = path.stat().st_size
    return "" if found == sealed.size else f"{path}: found {found} bytes, expected {sealed.size}"
