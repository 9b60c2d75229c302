"""One run at a time in a folder: a lock that names its owner, and goes with its process however that ends.

The kernel holds the lock (flock), on a shared file system its server, so that a process that was killed leaves none.
Where a file system has no flock, `filelock` falls back to a marker file, and removes the one of a process that is no
more on the same host. Where flock holds for one host only (some mounts say so: "local_lock"), two hosts do not see
each other: there the lease counts. The owner says in owner.json every `BEAT_S` seconds that it is still there, and
whoever comes from another host, after one that has not given the folder back, takes it only when nothing was said for
`LEASE_S` seconds. No clock is compared with another host's.
"""

import json
import os
import socket
import sys
import threading
import time
import weakref
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from evidence.lines import from_json

if TYPE_CHECKING:
    from filelock import BaseFileLock

LOCK, OWNER = ".lock", "owner.json"  # in the folder
BEAT_S, LEASE_S = 5.0, 30.0  # a beat may be late by a network folder's cache of a file, which is some seconds
LOST = 1  # the exit status of a process whose folder another one has taken


@dataclass(frozen=True)
class Owner:
    """Who has the folder. kernel: of its host, which containers share; a flock reaches whoever has the same. time: at
    which it said so, on its own clock."""

    host: str
    pid: int
    kernel: str
    time: float

    def is_same(self, other: "Owner") -> bool:
        return (self.kernel, self.pid) == (other.kernel, other.pid)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def _myself() -> Owner:
    host, boot = socket.gethostname(), Path("/proc/sys/kernel/random/boot_id")
    return Owner(host, os.getpid(), boot.read_text().strip() if boot.exists() else host, time.time())


class FolderLock:
    """Of one folder. It belongs to the process: whoever takes it twice there has it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ended = threading.Event()
        weakref.finalize(self, self._ended.set)

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
            self._refuse(str(read_owner(self._folder) or "its process has not said which it is"))
        before, me = read_owner(self._folder), _myself()
        if before is not None and before.kernel != me.kernel and self._beats(before):
            self._lock.release(force=True)
            self._refuse(str(before))
        write_owner(self._folder, me)
        threading.Thread(target=_beat, args=(self._folder, me, self._ended), daemon=True).start()

    def _refuse(self, owner: str) -> None:
        raise ValueError(
            f"{self._folder}: found a run under way in it ({owner}), expected that one to end, or another --run-dir"
        )

    def _beats(self, before: Owner) -> bool:
        """Whether the owner on another host says within the lease that it is still there."""
        end = time.monotonic() + LEASE_S
        while time.monotonic() < end:
            if (now := read_owner(self._folder)) != before:
                return now is not None
            time.sleep(BEAT_S / 10)
        return False

    def release(self) -> None:
        """Another process may have the folder."""
        self._ended.set()
        owner = read_owner(self._folder)
        if self._lock.is_locked and owner is not None and owner.is_same(_myself()):
            (self._folder / OWNER).unlink(missing_ok=True)
        self._lock.release(force=True)


def read_owner(folder: Path) -> Owner | None:
    """Who says that it has the folder; None where nobody does. One of an older version has no lease, nor has what a
    host that lost its power left of the file."""
    try:
        found = from_json((folder / OWNER).read_text(encoding="utf-8"))
        return Owner(**found)
    except (FileNotFoundError, TypeError, ValueError):
        return None


def write_owner(folder: Path, owner: Owner) -> None:
    """In the place of any that was there."""
    written = folder / f".{OWNER}"
    written.write_text(json.dumps(asdict(owner)) + "\n", encoding="utf-8")
    written.replace(folder / OWNER)


def _beat(folder: Path, me: Owner, ended: threading.Event) -> None:
    """Says until `ended` that the process has the folder. Ends the process where another one has taken it: this one was
    not heard of for longer than a lease, and two that write would spoil the run."""
    while not ended.wait(BEAT_S):
        try:
            found = read_owner(folder)
            if found is None or found.is_same(me):
                write_owner(folder, replace(me, time=time.time()))
                continue
        except (OSError, ValueError):  # a disk that is full, or gone for a while: others then wait, or take over
            continue
        if not ended.is_set():
            print(f"edge-opd: {folder}: found it taken by {found}, after no sign of this one", file=sys.stderr)
            sys.stderr.flush()
            os._exit(LOST)
