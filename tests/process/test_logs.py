"""Logs of actors: in a folder that everyone can guess, and that only the user who runs them may use."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import ROOT

WRITE = """
import os, pathlib, sys
from cluster.fleet.processes import log_to_file
pathlib.Path(sys.argv[1]).write_text(log_to_file("learner"))
os.write(1, b"said\\n")
"""


def logged(temporary: Path) -> Path:
    """The log of a process with this temporary folder, which has said something."""
    env = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)}
    command, where = [sys.executable, "-c", WRITE], temporary / "path"
    done = subprocess.run([*command, where], env=env, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return Path(where.read_text())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_a_log_and_its_folder_are_the_users_own(tmp_path: Path) -> None:
    log = logged(tmp_path)
    assert log.read_text() == "said\n" and log.parent == tmp_path / f"edge-opd-logs-{os.getuid()}"
    assert (mode(log), mode(log.parent)) == (0o600, 0o700)


def test_a_folder_that_was_left_open_is_closed(tmp_path: Path) -> None:
    folder = tmp_path / f"edge-opd-logs-{os.getuid()}"
    folder.mkdir(mode=0o755)
    folder.chmod(0o777)
    assert logged(tmp_path).parent == folder and mode(folder) == 0o700


@pytest.mark.parametrize("kind", ["another user's folder", "a link", "a file"])
def test_what_somebody_else_made_first_is_not_written_to(tmp_path: Path, kind: str) -> None:
    place, theirs = tmp_path / f"edge-opd-logs-{os.getuid()}", tmp_path / "theirs"
    theirs.mkdir()
    if kind == "a link":
        place.symlink_to(theirs)
    elif kind == "a file":
        place.write_text("theirs")
    else:
        if os.geteuid() != 0:
            pytest.skip("another user's folder needs root")
        place.mkdir(mode=0o777)
        os.chown(place, 12345, 12345)
    log = logged(tmp_path)
    assert log.parent not in (place, theirs) and log.parent.parent == tmp_path
    assert (mode(log), mode(log.parent)) == (0o600, 0o700) and log.read_text() == "said\n"
    assert not list(theirs.iterdir()) and (not place.is_dir() or not list(place.iterdir()))
