"""Which sockets a run's processes listen on, seen from outside while it lasts."""

import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import psutil

EVERY_S = 0.2
WORKER = "ray::worker"  # one that waits, or that has a task of Ray's
OURS = {f"ray::{name}" for name in ("LearnerActor", "EngineActor", "RolloutActor", "DashboardAgent", "RuntimeEnvAgent")}
TITLE = re.compile(r"ray::\w+|VLLM::\w+|ray-dashboard-\w+")
LISTENS = "0A"  # the state in /proc/net/tcp
SIDES = re.compile(r"^\s*\d+: ([0-9A-F]+):([0-9A-F]{4}) \S+ (\S\S) (?:\S+ +){5}(\d+)", re.MULTILINE)


@dataclass(frozen=True, order=True)
class Listener:
    """A socket that takes connections: whose it is, such as gcs_server or ray::EngineActor, and from where."""

    process: str
    reach: str  # "loopback", "everyone", or an address of the host's


class Watch:
    """Remembers every socket that the processes it is shown listen on."""

    def __init__(self) -> None:
        self._reach: dict[str, tuple[int, str]] = {}  # by the socket's number: whose it is, and from where
        self._names: dict[int, str] = {}  # as they are called last: a process of Ray's gets its title as it runs

    def look(self, processes: Iterable[psutil.Process]) -> None:
        for process in processes:
            with suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError, PermissionError):
                if (words := process.cmdline()) or process.pid not in self._names:  # one that exits has none any more
                    self._names[process.pid] = _name(words or [process.name()])
                sockets = _sockets(process.pid)
                if new := sockets.keys() - self._reach.keys():
                    for number in new & _held(process.pid):
                        self._reach[number] = process.pid, sockets[number]

    def found(self) -> set[Listener]:
        """All that were there."""
        return {Listener(self._names[pid], reach) for pid, reach in self._reach.values()}


@contextmanager
def watched(processes: Callable[[], Iterable[psutil.Process]]) -> Iterator[Watch]:
    """Within it what `processes` gives is looked at all the time."""
    watch, done = Watch(), threading.Event()

    def look() -> None:
        while not done.wait(EVERY_S):
            watch.look(processes())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield watch
    finally:
        done.set()
        thread.join()


def family(pid: int) -> list[psutil.Process]:
    """A process and all that it started."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def _sockets(pid: int) -> dict[str, str]:
    """(number: reach) of every socket that listens in the network of a process."""
    found = {}
    for table in ("tcp", "tcp6"):
        text = Path(f"/proc/{pid}/net/{table}").read_text()
        for address, _, state, number in SIDES.findall(text):
            if state == LISTENS:
                found[number] = _reach(address)
    return found


def _reach(address: str) -> str:
    words = [bytes.fromhex(address[at : at + 8])[::-1] for at in range(0, len(address), 8)]
    found = ip_address(b"".join(words))
    found = getattr(found, "ipv4_mapped", None) or found
    return "loopback" if found.is_loopback else "everyone" if found.is_unspecified else str(found)


def _held(pid: int) -> set[str]:
    held = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            target = os.readlink(descriptor)
            if target.startswith("socket:["):
                held.add(target[8:-1])
    return held


def _name(words: list[str]) -> str:
    """Without arguments and numbers: ray::EngineActor of ray::EngineActor.start, monitor of python .../monitor.py."""
    if title := TITLE.match(words[0]):
        return WORKER if title[0].startswith("ray::") and title[0] not in OURS else title[0]
    if not Path(words[0]).name.startswith("python"):
        return Path(words[0]).name
    name = Path(next((word for word in words[1:] if not word.startswith("-")), "python")).name.removesuffix(".py")
    return WORKER if name in ("default_worker", "setup_worker") else name
