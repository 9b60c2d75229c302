"""A run's folder may be somebody else's: a link in it may lead to any file of the reader's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

# What is read of a folder, or written to it, when a run is looked at; the shards are `evidence.shards.shard_of`'s.
LOOKED_AT = ("*.toml", "*.json", "*.jsonl", "*.arrow", "answers", "student", "export", "view")


def require_own_files(given: Mapping[str, Any]) -> None:
    """The files of the runs that a command opens are in their folders: no link leads out. (Nobody can tell a hard link,
    which only who may read a file can make.)

    given: the command's arguments; one without `follow` opens no run.

    Raises:
        ValueError: names the link.
    """
    if given.get("follow", True):
        return
    for run in map(Path, given.get("runs") or [given.get("run") or given["dir"]]):
        root = run.resolve()  # the folder itself may be a link, which the reader has named
        found = [path for pattern in LOOKED_AT for path in sorted(run.glob(pattern))]
        for path in (*found, *(inner for outer in found if outer.is_dir() for inner in outer.iterdir())):
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                raise ValueError(
                    f"{path}: found a link to {path.resolve()}, expected a file of this folder: --follow reads what a "
                    "run that you trust has elsewhere"
                )
