"""A run's folder may be somebody else's: a link in it may lead to any file of the reader's."""

import argparse
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

# What is read of a folder, or written to it, when a run is looked at; the shards are `evidence.shards.shard_of`'s.
LOOKED_AT = ("*.toml", "*.json", "*.jsonl", "*.arrow", "answers", "student", "export", "view")


def add_follow(parser: argparse.ArgumentParser, *opens: str) -> None:
    """opens: what the command reads of a run beside `LOOKED_AT`."""
    parser.add_argument("--follow", action="store_true", help="also read what the run has or names outside its folder")
    parser.set_defaults(opens=opens)


def require_own_files(given: Mapping[str, Any]) -> None:
    """The files of the runs that a command opens are in their folders: no link leads out, at any depth. (Nobody can
    tell a hard link, which only who may read a file can make.)

    given: the command's arguments; one without `follow` opens no run.

    Raises:
        ValueError: names the link.
    """
    if given.get("follow", True):
        return
    for run in map(Path, given.get("runs") or [given.get("run") or given["dir"]]):
        root = Path(os.path.realpath(run))  # the folder itself may be a link, which the reader has named
        patterns = (*LOOKED_AT, *given["opens"])
        inside = sorted(run.glob("*"))  # by which a link to nothing is found too
        _require_within(root, (path for path in inside if any(map(path.match, patterns))))


def _require_within(root: Path, paths: Iterable[Path]) -> None:
    """A folder's files are looked at too, also where a link within `root` leads to it; each folder once."""
    seen, ahead = set[Path](), list(paths)
    while ahead:
        path = ahead.pop(0)
        place = Path(os.path.realpath(path))  # a link to itself is nothing, and no error
        if not place.is_relative_to(root):
            raise ValueError(
                f"{path}: found a link to {place}, expected a file of this folder: --follow reads what a run that you "
                "trust has elsewhere"
            )
        if place.is_dir() and place not in seen:
            seen.add(place)
            ahead += sorted(path.iterdir())
