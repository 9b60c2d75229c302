"""Who takes what of this host's GPUs, from before it is taken: two runs that start at the same moment see each other.

Who plans with a GPU's memory holds one lock of the host from the look at the memory until its claim is written: a file
for each GPU with the bytes that were planned. The kernel holds the locks (flock), so that neither outlives its process.
A claim counts until its run has ended, whatever of it is in use: engines may sleep, and a step's tensors come late.
Runs in containers see each other where they share /tmp, and all users of a host do. A Ray cluster needs none of this:
what Ray gives to one run it gives to nobody else.
"""

import atexit
import fcntl
import json
import os
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from cluster.sizing.cards import Card
from evidence.lines import from_json

FOLDER = Path("/tmp")  # of the host, whatever a process has for its temporary files
LOCK, PREFIX = "edge-opd-gpus.lock", "edge-opd-gpu-"
LOOK_S = 60.0  # for all who look before: each takes as long as a plan of its memory
PAUSE_S = 0.1
LONGEST = 1000  # bytes of a claim; what is longer is somebody else's file


@dataclass(frozen=True)
class Claim:
    """Bytes of one GPU. others: what was in use when nobody had a claim on it."""

    uuid: str
    pid: int
    asked: int
    others: int


class Look:
    """While it is held, nobody else on this host plans with its GPUs' memory; `close` ends it.

    Raises:
        TimeoutError: somebody else looks for `deadline_s` seconds; names the process.
        OSError: the folder cannot be written, or somebody's file in it cannot be locked.
    """

    def __init__(self, folder: Path | None = None, deadline_s: float = LOOK_S) -> None:
        self._folder = folder = folder or FOLDER
        self._free: dict[str, int] = {}
        self._lock = _opened(folder / LOCK)
        end = time.monotonic() + deadline_s
        while not _taken(self._lock, fcntl.LOCK_EX):
            if time.monotonic() > end:
                holder = _holder(self._lock)
                os.close(self._lock)
                raise TimeoutError(
                    f"placement: {folder / LOCK}: found {holder} looking at this host's GPUs for {deadline_s:g} s, "
                    "expected it to have planned its memory: end it, or start again"
                )
            time.sleep(PAUSE_S)
        self._claims = list(_standing(folder))

    def left(self, cards: Sequence[Card]) -> list[Card]:
        """The cards with no more free memory than what the claims leave, held by who has those, too."""
        found = []
        for card in cards:
            self._free[card.uuid] = card.free
            mine = [claim for claim in self._claims if claim.uuid == card.uuid]
            if mine:
                most = card.total - max(claim.others for claim in mine) - sum(claim.asked for claim in mine)
                holders = dict.fromkeys((*card.holders, *(claim.pid for claim in mine)))
                card = replace(card, free=max(0, min(card.free, most)), holders=tuple(holders))
            found.append(card)
        return found

    def claim(self, asked: Mapping[Card, float]) -> None:
        """Takes bytes of cards that `left` has given, until this process ends.

        Raises:
            OSError: the folder cannot be written.
        """
        for card, size in asked.items():
            if card.uuid:
                _write(self._folder, Claim(card.uuid, os.getpid(), int(size), self._others(card)))

    def _others(self, card: Card) -> int:
        known = [claim.others for claim in self._claims if claim.uuid == card.uuid]
        return max(known) if known else card.total - self._free[card.uuid]

    def close(self) -> None:
        """Others may look."""
        os.close(self._lock)

    def __enter__(self) -> "Look":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _write(folder: Path, claim: Claim) -> None:
    """A file that this process keeps locked: nothing closes it before the end."""
    with _named(folder / f"{PREFIX}..."):
        file, path = tempfile.mkstemp(prefix=PREFIX, dir=folder)
        atexit.register(Path(path).unlink, missing_ok=True)
        fcntl.flock(file, fcntl.LOCK_EX)
        os.fchmod(file, 0o644)
        os.write(file, json.dumps(asdict(claim)).encode())


def _standing(folder: Path) -> Iterator[Claim]:
    """Those whose processes are there; what others have left is removed."""
    for path in sorted(folder.glob(f"{PREFIX}*")):
        with suppress(OSError):  # it went meanwhile, or is somebody's who keeps it from us
            file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                if not stat.S_ISREG(os.fstat(file).st_mode):
                    continue
                if _taken(file, fcntl.LOCK_SH):
                    path.unlink()
                else:
                    yield Claim(**from_json(os.read(file, LONGEST)))
            except (TypeError, ValueError):  # no claim
                continue
            finally:
                os.close(file)


def _opened(path: Path) -> int:
    """A file that every user may lock. One who may not write to it can."""
    with _named(path):
        with suppress(FileExistsError):
            made = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o644)
            os.fchmod(made, 0o644)
            return made
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Who cannot make or open a file hears which, and what would help."""
    try:
        yield
    except OSError as error:
        if os.path.lexists(path):
            raise OSError(
                f"placement: {path}: found a file that cannot be locked ({error.strerror}), expected one that every "
                "user may read: have it removed while no run starts"
            ) from None
        raise OSError(
            f"placement: {path}: found that it cannot be written ({error.strerror}), expected a {path.parent} that can "
            "be: on a read-only root mount one"
        ) from None


def _taken(file: int, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(file: int) -> str:
    """Who holds the lock, as the kernel says it: "1: FLOCK ADVISORY WRITE 4321 08:01:9999 0 EOF"."""
    inode = str(os.fstat(file).st_ino)
    with suppress(OSError):
        for line in Path("/proc/locks").read_text(encoding="utf-8").splitlines():
            fields = line.split()
            if "FLOCK" in fields and fields[5].rpartition(":")[2] == inode:
                return f"process {fields[4]}"
    return "another process"
