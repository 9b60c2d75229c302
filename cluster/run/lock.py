"""One run at a time in a folder: a lock that names its owner, and goes with its process however that ends.

The kernel holds the lock (flock), on a shared file system its server, so that a process that was killed leaves none.
Where a file system has no flock, `filelock` falls back to a marker file, and removes the one of a process that is no
more on the same host. Where flock holds for one host only (some mounts say so: "local_lock"), two hosts do not see
each other.
"""

import json
import os
import socket
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filelock import BaseFileLock

LOCK, OWNER = ".lock", "owner.json"  # in the folder


class FolderLock:
    """Of one folder. It belongs to the process: whoever takes it twice there has it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @cached_property
    def _lock(self) -> "BaseFileLock":
        from filelock import FileLock  # what only reads a run does without it

        return FileLock(self._folder / LOCK, timeout=0, thread_local=False, is_singleton=True)

    def take(self) -> None:
        """Holds the folder until `release`, or until nothing holds this object.

        Raises:
            ValueError: another process has it; names that one and its host.
        """
        from filelock import Timeout

        try:
            self._lock.acquire()
        except Timeout:
            raise ValueError(
                f"{self._folder}: found a run under way in it ({self._owner()}), expected that one to end, or another "
                "--run-dir"
            ) from None
        written = self._folder / f".{OWNER}"
        written.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}) + "\n", encoding="utf-8")
        written.replace(self._folder / OWNER)

    def release(self) -> None:
        """Another process may have the folder."""
        self._lock.release(force=True)

    def _owner(self) -> str:
        """Who has it; the one before, for an instant after it was taken."""
        path = self._folder / OWNER
        if not path.exists():
            return "its process has not said which it is"
        owner = json.loads(path.read_text(encoding="utf-8"))
        return f"process {owner['pid']} on {owner['host']}"
