"""A run's folder between processes: one run at a time, whole lines, and records that open on a laptop."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from cluster.__main__ import main
from cluster.config import Recipe, dump
from cluster.run.lock import OWNER, FolderLock, Owner, read_owner
from cluster.run.record import append_step, read_steps
from cluster.run.rundir import RunDir, settled
from evidence.shards import shard_name, write_shard
from tests.runs import ROOT, lines
from tests.unit.test_evidence_shards import table
from tests.unit.test_record import a_step

HOLD = """
import sys
from pathlib import Path
from cluster.run.lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
lock.take()
print("held", flush=True)
sys.stdin.read()
"""


def python(code: str, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


@contextmanager
def another_run(folder: Path, code: str = HOLD) -> Iterator["subprocess.Popen[str]"]:
    """A process that holds the folder."""
    process = python(code, str(folder))
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait(timeout=60)
        for pipe in (process.stdin, process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()


def claimed(root: Path, resume: bool = False) -> Path:
    """A run's folder that nobody holds."""
    run = RunDir(root)
    run.claim(Recipe(), resume)
    run.release()
    return root


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("learned", [False, True])
def test_a_run_that_is_under_way_keeps_others_out(tmp_path: Path, resume: bool, learned: bool) -> None:
    root = claimed(tmp_path / "run")
    recipe = (root / "config.toml").read_text()
    if learned:
        (root / "metrics.jsonl").write_text('{"step": 0}\n')
    with another_run(root) as process:
        with pytest.raises(ValueError) as caught:
            RunDir(root).claim(Recipe(), resume)
        assert str(caught.value) == (
            f"{root}: found a run under way in it (process {process.pid} on {socket.gethostname()}), expected that one "
            "to end, or another --run-dir"
        )
        assert (root / "config.toml").read_text() == recipe


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, None], ids=["killed", "terminated", "ended"])
def test_the_folder_is_free_again_however_its_process_ends(tmp_path: Path, how: signal.Signals | None) -> None:
    root = claimed(tmp_path / "run")
    with another_run(root) as process:
        if how is None:
            process.communicate(timeout=60)  # which closes what it reads from
        else:
            process.send_signal(how)
        process.wait(timeout=60)
        run = RunDir(root)
        run.claim(Recipe(), resume=True)
        owner = json.loads((root / "owner.json").read_text())
        assert (owner["host"], owner["pid"]) == (socket.gethostname(), os.getpid())
        run.release()
        assert not (root / "owner.json").exists()


# Stops itself once it may not go on, between two of its signs.
ELSEWHERE = """
import os, signal, sys
from pathlib import Path
from cluster.run import lock
mine, said, lock.BEAT_S = lock._myself, lock.write_owner, 0.2
lock._myself = lambda: lock.replace(mine(), host="elsewhere", kernel="another")
folder = Path(sys.argv[1])
def write_owner(*owner):
    said(*owner)
    if folder.with_name("stop").exists():
        os.kill(os.getpid(), signal.SIGSTOP)
lock.write_owner = write_owner
held = lock.FolderLock(folder)
held.take()
(folder / lock.LOCK).unlink()  # so that the kernel's lock does not reach who comes next
print("held", flush=True)
sys.stdin.read()
"""


def test_an_owner_on_another_host_keeps_others_out_as_long_as_it_is_heard_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = claimed(tmp_path / "run")
    monkeypatch.setattr("cluster.run.lock.BEAT_S", 0.2)
    monkeypatch.setattr("cluster.run.lock.LEASE_S", 120.0)
    with another_run(root, ELSEWHERE) as first:
        with pytest.raises(ValueError, match=rf"a run under way in it \(process {first.pid} on elsewhere\)"):
            RunDir(root).claim(Recipe(), resume=True)
        (tmp_path / "stop").touch()
        while psutil.Process(first.pid).status() != psutil.STATUS_STOPPED:
            time.sleep(0.02)
        monkeypatch.setattr("cluster.run.lock.LEASE_S", 0.5)
        run = RunDir(root)
        run.claim(Recipe(), resume=True)
        assert json.loads((root / "owner.json").read_text())["pid"] == os.getpid()
        first.send_signal(signal.SIGCONT)  # who was taken for dead may not write any more
        assert first.wait(timeout=60) == 1
        assert first.stderr is not None and f"taken by process {os.getpid()} on " in first.stderr.read()
        run.release()


def test_an_owner_on_another_host_that_has_given_the_folder_back_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.run.lock._myself", lambda: Owner("elsewhere", 7, "another", 0.0))
    root = claimed(tmp_path / "run")
    monkeypatch.undo()
    monkeypatch.setattr(FolderLock, "_beats", lambda *_: pytest.fail("it was waited for"))
    claimed(root, resume=True)


def test_the_owner_survives_a_second_one_that_was_refused(tmp_path: Path) -> None:
    root = claimed(tmp_path / "run")
    with another_run(root) as first:
        for _ in range(2):
            second = python(HOLD, str(root))
            _, said = second.communicate(timeout=120)
            assert second.returncode == 1 and f"process {first.pid} on " in said


def test_a_folder_whose_claim_was_cut_short_may_become_a_run(tmp_path: Path) -> None:
    with another_run(tmp_path) as process:
        process.kill()
        process.wait(timeout=60)
    claimed(tmp_path)
    assert (tmp_path / "config.toml").is_file()


def test_a_run_has_ended_while_its_export_is_what_the_end_left(tmp_path: Path) -> None:
    """Other weights, as `edge-opd export` writes them over the run's, none, and a damaged note are no end."""
    folder = RunDir(tmp_path / "run")
    assert not folder.has_ended()
    folder.export.mkdir(parents=True)
    weights = [folder.export / name for name in ("model-1.safetensors", "model-2.safetensors")]
    for path in weights:
        path.write_bytes(b"weights")
    assert not folder.has_ended()  # a model and no end
    folder.note_end()
    assert folder.has_ended() and not RunDir(tmp_path / "other").has_ended()
    (folder.export / "README.md").write_text("a card")
    assert folder.has_ended()
    other = folder.export / "other"
    other.write_bytes(b"Weights")
    os.replace(other, weights[1])
    assert not folder.has_ended()
    folder.note_end()
    assert folder.has_ended()
    weights[0].unlink()
    assert not folder.has_ended()
    for content in ("", "[]", '{"export": 3}', '{"format": 1, "exp'):
        folder.ended.write_text(content)
        assert not folder.has_ended()


def test_a_folder_that_is_no_run_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="found something that is not a run"):
        RunDir(tmp_path).claim(Recipe(), resume=False)
    with pytest.raises(ValueError, match="found no config"):
        RunDir(tmp_path / "new").claim(Recipe(), resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


WRITE = """
import sys
from pathlib import Path
from cluster.run.record import append_step
from tests.unit.test_record import a_step
for step in range(30):
    append_step(Path(sys.argv[1]), a_step(step + int(sys.argv[2])))
"""


def test_two_processes_write_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    writers = [python(WRITE, str(path), first) for first in ("0", "100")]
    for writer in writers:
        _, said = writer.communicate(timeout=120)
        assert writer.returncode == 0, said
    assert list(read_steps(path)) == [*range(30), *range(100, 130)] and len(lines(path)) == 60


def test_a_full_disk_leaves_whole_lines(tiny_disk: Path) -> None:
    path = tiny_disk / "metrics.jsonl"
    with pytest.raises(OSError, match="cannot append") as caught:
        for step in range(1000):
            append_step(path, a_step(step))
    assert str(path) in str(caught.value)
    assert path.read_bytes().endswith(b"\n") and len(read_steps(path)) == len(lines(path)) > 2


ALONE = """
import sys
known = sys.stdlib_module_names | {"numpy", "pyarrow", "cluster", "evidence", "rollout", "learner"}
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in known and not name.startswith("_"):
            raise ModuleNotFoundError("not on a laptop: " + name, name=name)
sys.meta_path.insert(0, Nothing())
from pathlib import Path
from cluster.run.record import read_probes, read_steps
run = Path(sys.argv[1])
print(len(read_steps(run / "metrics.jsonl")), len(read_probes(run / "probes.jsonl")))
"""


def test_records_open_where_only_numpy_and_pyarrow_are() -> None:
    process = python(ALONE, str(ROOT / "docs" / "reproduction" / "runs" / "N3-seed0"))
    said, error = process.communicate(timeout=120)
    assert (process.returncode, said) == (0, "24 4\n"), error


def test_a_run_does_not_begin_where_another_has_its_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = str(tmp_path / "store")
    write_shard(table(step=0), store, shard_name(0))
    recipe = str(ROOT / "cluster/recipes/local-smoke.toml")
    assert main(["run", recipe, "--run-dir", str(tmp_path / "r2"), "--set", f"run.storage={store}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        f"edge-opd: run.storage: {store}/step-000000.arrow: found a shard of the run 'r1', expected"
    )
    assert error.count("\n") == 1 and not (tmp_path / "r2").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff\x00", b'{"host": "a"}'])
def test_what_a_lost_host_left_of_the_owner_keeps_nobody_out(tmp_path: Path, content: bytes) -> None:
    root = claimed(tmp_path / "run")
    (root / OWNER).write_bytes(content)
    lock = FolderLock(root)
    lock.take()
    assert read_owner(root) is not None
    lock.release()


@pytest.mark.parametrize("half", ["", "[run]\nsteps = 3\nnam"], ids=["empty", "cut"])
def test_half_a_recipe_of_a_start_that_was_cut_is_none(tmp_path: Path, half: str) -> None:
    """As an older version left it on a full disk, or where it was killed. A run's own is not passed over."""
    folder = RunDir(tmp_path)
    folder.config.write_text(half)
    recipe = settled(Recipe(), folder)
    assert recipe.run.date
    folder.claim(recipe, resume=False)
    assert folder.config.read_text() == dump(recipe) and settled(Recipe(), folder) == recipe
    folder.manifest.touch()
    folder.config.write_text("[run")
    with pytest.raises(ValueError, match="found text that is not TOML"):
        settled(Recipe(), folder)


def test_a_recipe_is_in_its_folder_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, recipe = RunDir(tmp_path / "run"), settled(Recipe(), RunDir(tmp_path / "run"))
    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        disk.setattr(Path, "unlink", lambda *_, **__: None)  # as where the start is killed
        with pytest.raises(OSError, match="No space left"):
            folder.claim(recipe, resume=False)
    assert not folder.config.exists()
    folder.release()
    (again := RunDir(folder.root)).claim(recipe, resume=False)
    assert again.config.read_text() == dump(recipe)
