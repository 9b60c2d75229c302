"""Who may change a checkpoint: nobody but the user who loads it, since what is read there becomes the run."""

import grp
import os
import pwd
import stat
import tempfile
from pathlib import Path


def require_own(folder: Path) -> None:
    """The folder and all that is in it are this user's, and no other's to write to.

    Raises:
        ValueError: names the first that is not, and what to do.
    """
    if not folder.exists():
        return  # which whoever reads it says
    folder = folder.resolve()  # a run's folder may be a link to another disk
    own = _owner_here(folder)
    for path in (folder, *sorted(folder.rglob("*"))):
        if fault := _fault(path.lstat(), own):
            raise ValueError(
                f"{path}: found {fault}, expected a checkpoint that nobody else may write to: if you trust it, "
                f"`chmod -R go-w {folder}`, or copy it"
            )


def _owner_here(folder: Path) -> int:
    """Whose a file is that this process makes there: over a network it need not be this process's own user."""
    try:
        with tempfile.TemporaryFile(dir=folder) as made:
            return os.fstat(made.fileno()).st_uid
    except OSError:  # a folder to read only
        return os.geteuid()


def _fault(found: os.stat_result, own: int) -> str:
    if stat.S_ISLNK(found.st_mode):
        return "a link"
    if found.st_uid not in (own, 0):
        return f"a file of user {found.st_uid}"
    others = found.st_mode & stat.S_IWOTH
    group = found.st_mode & stat.S_IWGRP and not _is_own_group(found.st_gid, own)
    return f"mode {stat.S_IMODE(found.st_mode):04o}" if others or group else ""


def _is_own_group(gid: int, uid: int) -> bool:
    """Whether it is the group that a user has alone, for which many systems let new files be written to."""
    try:
        group, user = grp.getgrgid(gid), pwd.getpwuid(uid)
    except KeyError:
        return False
    return user.pw_gid == gid and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}
