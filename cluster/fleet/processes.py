"""What an actor's process does for itself: a log of its own, a free port, and little garbage collection."""

import gc
import os
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

LAST_LINES = 12
LOG_DAYS = 7
TRACKER = "multiprocessing.resource_tracker"  # in its command line
Process = tuple[int, float]  # its number, and when it began: numbers are used again


def log_to_file(name: str) -> str:
    """Sends this process's output, and its children's, to a file of its own; returns the path."""
    folder = Path(tempfile.gettempdir()) / f"edge-opd-logs-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    remove_old_logs(folder)
    path = folder / f"{name}-{os.getpid()}.log"
    sys.stdout.flush(), sys.stderr.flush()
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(target, 1), os.dup2(target, 2)
    os.close(target)
    return str(path)


def remove_old_logs(folder: Path) -> None:
    """Of processes that are gone, and which nobody has looked at for `LOG_DAYS` days."""
    oldest = time.time() - LOG_DAYS * 24 * 3600
    for path in folder.glob("*.log"):
        pid = path.stem.rpartition("-")[2]
        is_running = pid.isdecimal() and Path(f"/proc/{pid}").exists()
        with suppress(FileNotFoundError):  # another process does the same
            if not is_running and path.stat().st_mtime < oldest:
                path.unlink()


def last_lines(path: str, count: int = LAST_LINES) -> str:
    """The end of a log, indented."""
    lines = [line for line in Path(path).read_text(errors="replace").splitlines() if line.strip()]
    return "\n".join(f"    {line}" for line in lines[-count:])


def collect_seldom() -> None:
    """Lets this process look for cyclic garbage seldom. The rollouts under way are many small objects, which live long
    and have no cycles: by default each collection walks all of them, for a third of the controller's time."""
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)


def free_port() -> int:
    """A port that is free on this host now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def own_processes() -> list[Process]:
    """This process and what it started, the youngest first, but for Python's trackers of resources: these end by
    themselves once all others have, and give back the semaphores and the shared memory that those have left."""
    own = psutil.Process()
    started = [process for process in reversed(own.children(recursive=True)) if not _tracks(process)]
    return [(process.pid, process.create_time()) for process in (*started, own)]


def _tracks(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        return any(TRACKER in part for part in process.cmdline())
    return False


def end_processes(processes: Sequence[Process]) -> None:
    """Kills those that are still there, also one that was stopped and hears nothing else."""
    for number, begun in processes:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(number)
            if process.create_time() == begun:
                process.kill()
