"""One folder a run on each host of it, for whatever is temporary: the session of a Ray of the run's own, vLLM's sockets
and meeting files, an adapter on its way. Logs stay where they are, for whoever looks why a run failed.

Every process of the run on that host holds a lock on the folder, which the kernel gives back however a process ends. A
folder that nobody holds is removed: by the run's end, or by the next run's start on that host.
"""

import fcntl
import os
import shutil
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from cluster.fleet.processes import private_folder

PREFIX, HELD = "eopd-", ".held"
RAY = "r"  # Ray opens its folder to everyone, who the one around it keeps out
# Short, since a socket's path has 107 characters at most, and Ray's session takes 66.
LONGEST = 107 - 66 - len(f"/{PREFIX}12345678/{RAY}")
OUTLIVE = {"TORCHINDUCTOR_CACHE_DIR": f"torchinductor_{os.getuid()}"}  # caches, which are no run's


def enter(run: str) -> None:
    """Temporary files of this process, and of those that it starts, go to the folder of `run` on this host from now on.
    RuntimeError as `hold`."""
    before, folder = Path(tempfile.gettempdir()), hold(run)
    for variable, name in OUTLIVE.items():
        if variable not in os.environ:
            os.environ[variable] = str(private_folder(before / name))
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)


def hold(run: str) -> Path:
    """The folder of `run` on this host, made where it is not there, which is this process's until it ends. Removes what
    runs before have left.

    Raises:
        RuntimeError: somebody else's folder has its name, or a link is in the place of its lock.
    """
    remove_left()
    folder = place() / f"{PREFIX}{run[:8]}"
    while True:
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        with suppress(FileNotFoundError):  # it was removed meanwhile
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or (folder / HELD).is_symlink():
                raise RuntimeError(f"{folder}: found somebody else's, expected no folder but this run's")
            folder.chmod(0o700)  # before anything of the run's is in it
            lock = os.open(folder / HELD, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            fcntl.flock(lock, fcntl.LOCK_SH)
            if (folder / HELD).stat().st_ino == os.fstat(lock).st_ino:
                return folder


def remove_left() -> None:
    """Removes the folders of this user's runs on this host that no process holds any more."""
    for folder in place().glob(f"{PREFIX}*"):
        with suppress(OSError):  # held, or removed by another process
            if folder.lstat().st_uid != os.getuid():
                continue
            lock = os.open(folder / HELD, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def place() -> Path:
    """Where runs have their folders: the temporary folder, unless its name leaves no room for that of a socket."""
    usual = tempfile.gettempdir()
    return Path(usual if len(usual) <= LONGEST else "/tmp")
