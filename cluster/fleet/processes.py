"""What an actor's process does for itself: a log of its own, and little garbage collection."""

import gc
import os
import stat
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
    """Sends this process's output, and its children's, to a file of its own that only this user reads; returns the
    path."""
    folder = private_folder(Path(tempfile.gettempdir()) / f"edge-opd-logs-{os.getuid()}")
    remove_old_logs(folder)
    path = folder / f"{name}-{os.getpid()}.log"
    path.unlink(missing_ok=True)  # of an earlier process of that number
    sys.stdout.flush(), sys.stderr.flush()
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)  # which follows no link
    os.dup2(target, 1), os.dup2(target, 2)
    os.close(target)
    return str(path)


def private_folder(path: Path) -> Path:
    """The folder at `path`, which everyone may guess: this user's, and nobody else's to read or write. Where somebody
    else was there first, one beside it that nobody can guess."""
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        return Path(tempfile.mkdtemp(prefix=f"{path.name}-", dir=path.parent))
    path.chmod(0o700)  # an older version left it open
    return path


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
    """Lets this process look for cyclic garbage seldom, and never again at what it has by now. Libraries stay, and
    walking what they bring is a fifth of the time that importing them takes; so do rollouts under way and the rows of a
    large file, many small objects without cycles: walking them took a third of the controller's time."""
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)


def own_processes(*others: int) -> list[Process]:
    """This process and what it started, the youngest first, but for Python's trackers of resources: these end by
    themselves once all others have, and give back the semaphores and the shared memory that those have left.

    others: the numbers of processes that count with what this one started.
    """
    found = dict.fromkeys(one for number in (os.getpid(), *others) for one in _family(number))
    started = [process for process in reversed(found) if not _tracks(process)]
    return [(process.pid, process.create_time()) for process in started]


def _family(number: int) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(number)
        return [process, *process.children(recursive=True)]
    return []


def _tracks(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        return any(TRACKER in part for part in process.cmdline())
    return False


def end_processes(processes: Sequence[Process], grace_s: float = 0.0) -> None:
    """Kills those that are still there, also one that was stopped and hears nothing else.

    grace_s: for those that were told to end, to do so by themselves.
    """
    _, there = psutil.wait_procs([process for process in map(_still, processes) if process], timeout=grace_s)
    for process in there:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _still(process: Process) -> psutil.Process | None:
    number, begun = process
    with suppress(psutil.NoSuchProcess):
        found = psutil.Process(number)
        return found if found.create_time() == begun else None
    return None
