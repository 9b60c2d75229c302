"""What a process leaves behind that was killed: nothing, once whoever is to clean up after it has."""

import ast
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from cluster.fleet import scratch
from cluster.fleet.processes import TRACKER, end_processes
from cluster.fleet.scratch import HELD, LONGEST, PREFIX, RAY
from tests import faults
from tests.forking import until
from tests.runs import ROOT


@pytest.fixture
def tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary folder of this test's own, with a name that is short enough."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as name:
        monkeypatch.setattr(tempfile, "tempdir", name)
        for variable in ("TMPDIR", *scratch.OUTLIVE):
            monkeypatch.setenv(variable, name)
            monkeypatch.delenv(variable)
        yield Path(name)


def python(code: str, tmp: Path) -> "subprocess.Popen[str]":
    """A process that has run `code` and printed a line, and then waits."""
    script = f"{code}\nprint('ready', flush=True)\nimport time; time.sleep(600)"
    env = os.environ | {"TMPDIR": str(tmp), "PYTHONPATH": str(ROOT)}
    started = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=env, cwd=ROOT)
    assert started.stdout is not None and started.stdout.readline() == "ready\n"
    return started


ENTERS = """
from cluster.fleet.scratch import enter
enter("{run}")
import tempfile
tempfile.mkdtemp(prefix="vllm_dist_")
"""


def folders(tmp: Path) -> list[str]:
    return sorted(path.name for path in tmp.glob(f"{PREFIX}*"))


def test_temporary_files_of_a_run_are_in_its_folder_which_goes_when_nobody_is_left(tmp: Path) -> None:
    one, two, other = (python(ENTERS.format(run=run), tmp) for run in ("one", "one", "other"))
    try:
        assert folders(tmp) == ["eopd-one", "eopd-other"] and not list(tmp.glob("vllm_dist_*"))
        assert (tmp / "eopd-one").stat().st_mode & 0o777 == 0o700
        assert len(list((tmp / "eopd-one").glob("vllm_dist_*"))) == 2
        one.kill(), other.send_signal(signal.SIGSTOP)
        one.wait()
        scratch.remove_left()
        assert folders(tmp) == ["eopd-one", "eopd-other"], "the second and a stopped one still hold them"
        two.kill()
        two.wait()
        third = python(ENTERS.format(run="third"), tmp)  # the next run's start removes what the first has left
        assert folders(tmp) == ["eopd-other", "eopd-third"]
        third.kill()
        third.wait()
        scratch.remove_left()
        assert folders(tmp) == ["eopd-other"]
    finally:
        for process in (one, two, other):
            process.kill()
            process.wait()


def test_somebody_elses_folder_is_neither_taken_nor_removed(tmp: Path) -> None:
    (tmp / "theirs").mkdir()
    (tmp / "theirs" / "work").write_text("precious")
    (tmp / "eopd-run").symlink_to(tmp / "theirs")
    with pytest.raises(RuntimeError, match=r"eopd-run: found somebody else's, expected no folder but this run's"):
        scratch.hold("run")
    (tmp / "eopd-notes").mkdir()
    (tmp / "eopd-linked").mkdir()
    (tmp / "eopd-linked" / HELD).symlink_to(tmp / "theirs" / "work")
    scratch.remove_left()
    assert {"eopd-notes", "eopd-linked", "eopd-run"} == set(folders(tmp)), "nothing held these as runs do"
    assert (tmp / "theirs" / "work").read_text() == "precious"


def test_an_own_folder_that_others_could_write_to_is_closed_and_a_link_in_it_is_not_followed(tmp: Path) -> None:
    for name in ("run", "other"):
        (tmp / f"eopd-{name}").mkdir()
        (tmp / f"eopd-{name}").chmod(0o777)
    assert scratch.hold("run").stat().st_mode & 0o777 == 0o700
    (tmp / "eopd-other" / HELD).symlink_to(tmp / "made")
    with pytest.raises(RuntimeError, match=r"eopd-other: found somebody else's, expected no folder but this run's"):
        scratch.hold("other")
    assert not (tmp / "made").exists()
    (tmp / "eopd-file").write_text("")
    with pytest.raises(RuntimeError, match=r"eopd-file: found somebody else's"):
        scratch.hold("file")


def test_compiled_code_is_kept_where_nobody_else_can_write(tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variable = "TORCHINDUCTOR_CACHE_DIR"

    def kept() -> Path:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp))
        monkeypatch.delenv(variable, raising=False)
        scratch.enter("run")
        return Path(os.environ[variable])

    (folder := tmp / scratch.OUTLIVE[variable]).mkdir()
    folder.chmod(0o777)
    assert kept() == folder and folder.stat().st_mode & 0o777 == 0o700
    folder.rmdir()
    (tmp / "theirs").mkdir()
    folder.symlink_to(tmp / "theirs")
    beside = kept()
    assert beside.parent == tmp and beside.name.startswith(f"{folder.name}-")
    assert beside.stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv(variable, "/a/folder/of/the/users")
    scratch.enter("run")
    assert os.environ[variable] == "/a/folder/of/the/users"


def test_a_socket_of_ray_fits_whatever_the_temporary_folder_is_called(
    tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = "session_2026-11-28_12-22-04_381924_1234567/sockets/plasma_store"
    for name in ("x" * (LONGEST - len(str(tmp)) - 1), "x" * (LONGEST - len(str(tmp)))):
        (tmp / name).mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(tmp / name))
        folder = scratch.place() / f"{PREFIX}12345678"
        assert folder.parent == (tmp / name if len(str(tmp / name)) <= LONGEST else Path("/tmp"))
        session_folder = folder / RAY / session
        session_folder.parent.mkdir(parents=True)
        with socket.socket(socket.AF_UNIX) as door:
            door.bind(str(session_folder))
        subprocess.run(["rm", "-r", str(folder)], check=True)


SPAWNS = """
import multiprocessing, time
from cluster.fleet.processes import own_processes
if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    lock = context.Lock()
    child = context.Process(target=time.sleep, args=(600,))
    child.start()
    print(lock._semlock.name, own_processes(), flush=True)
    time.sleep(600)
"""


def test_semaphores_of_processes_that_are_killed_are_given_back(tmp: Path) -> None:
    script = tmp / "spawns.py"
    script.write_text(SPAWNS)
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=env)
    try:
        assert parent.stdout is not None
        name, _, told = parent.stdout.readline().partition(" ")
        everyone = psutil.Process(parent.pid).children(recursive=True)
        assert any(TRACKER in " ".join(process.cmdline()) for process in everyone)
        semaphore = Path("/dev/shm") / f"sem.{name.removeprefix('/')}"
        assert semaphore.exists()
        end_processes(ast.literal_eval(told))
        parent.wait()
        assert until(lambda: not semaphore.exists())
        assert until(lambda: not any(process.is_running() for process in everyone))
    finally:
        parent.kill()
        parent.wait()


CORE = """
import multiprocessing, sys, time
def core():
    from rollout.ending import end_with_parent
    end_with_parent()
    print("ready", flush=True)
    while True:
        pass
if __name__ == "__main__":
    multiprocessing.get_context("spawn").Process(target=core).start()
    time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
def test_a_core_ends_with_the_process_that_started_it_whatever_it_is_doing(tmp: Path, number: signal.Signals) -> None:
    script = tmp / "core.py"
    script.write_text(CORE)
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=env)
    assert parent.stdout is not None and parent.stdout.readline() == "ready\n"
    children = psutil.Process(parent.pid).children(recursive=True)
    parent.send_signal(number)
    parent.wait()
    gone, alive = psutil.wait_procs(children, timeout=120)
    for process in alive:
        process.kill()
    assert len(gone) == 2 and not alive  # the core, and the tracker of resources


def test_a_core_that_ends_as_a_run_is_looked_at_is_none_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as gone:
        core = psutil.Process(gone.pid)
    monkeypatch.setattr(faults, "name_of", lambda _: faults.CORE)
    run = SimpleNamespace(
        process=SimpleNamespace(poll=lambda: None), _everyone=lambda: [core], _through=None, seen=set()
    )
    assert faults.UnderWay.processes(run) == {} and run.seen == {core}  # type: ignore[arg-type]


def test_a_title_has_no_folder_of_the_machine() -> None:
    """A report of chaos is committed."""
    command = [sys.executable, "-c", "print(flush=True); import sys; sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as started:
        assert started.stdout is not None and started.stdout.readline() == b"\n"
        title = faults.title_of(psutil.Process(started.pid))
    assert title.startswith(f"{Path(sys.executable).name} -c print(") and f" ({started.pid}, " in title
