"""A store or a disk that refuses for a while costs a run time, and nothing else."""

import asyncio
import errno
import gc
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

os.environ.setdefault("DS_ACCELERATOR", "cpu")
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine

from cluster.config import Recipe, load_recipe
from cluster.faults import FaultsConfig
from cluster.fleet.assembly import Services
from cluster.observe.sinks import MetricsSink
from cluster.run import asking, checkpoints, pipeline, replay, start
from cluster.run import finish as finishing
from cluster.run.checkpoints import Checkpoints
from cluster.run.notes import Notes
from cluster.run.record import append_probe, probe_record
from cluster.run.replay import standing
from cluster.run.rundir import RunDir, settled
from evidence import patience
from evidence.files import check_writable
from evidence.manifest import Manifest
from evidence.patience import retried, retried_beside
from evidence.records import ShardInfo
from evidence.shards import read_shard, write_shard
from learner.disk import written
from learner.kept import KeptWeights
from rollout.probe import summarise
from rollout.render import Renderer
from rollout.tasks import build_task
from tests.process.test_checkpoints import Ranks, steps_in
from tests.process.test_export import trained
from tests.process.test_finish import Silent
from tests.process.test_object_store import table
from tests.process.test_stop import stepped
from tests.process.test_teacher_check import Both, check
from tests.runs import RECIPE
from tests.s3 import Door, at, new_bucket, options
from tests.virtual_time import run_virtual

pytestmark = pytest.mark.usefixtures("credentials")


# Schedule


def failing(times: int, kind: type[OSError] = OSError) -> Callable[[], int]:
    """Fails so often, and then returns how often it was called."""
    calls = 0

    def work() -> int:
        nonlocal calls
        calls += 1
        if calls <= times:
            raise kind(f"attempt {calls}")
        return calls

    return work


async def timed(seconds: float, work: Callable[[], int], final: patience.Final = ()) -> tuple[float, int | str]:
    """What came of it, and after how long on the loop's clock."""
    clock = asyncio.get_running_loop().time
    begun = clock()
    try:
        found: int | str = await retried_beside(seconds, "a.arrow", work, final)
    except OSError as error:
        found = str(error)
    return clock() - begun, found


@pytest.mark.parametrize(
    ("seconds", "times", "after", "found"),
    [
        (300.0, 0, 0.0, 1),
        (300.0, 1, 0.5, 2),
        (300.0, 6, 31.5, 7),  # 0.5 + 1 + 2 + 4 + 8 + 16
        (300.0, 9, 121.5, 10),  # and 30 each
        (300.0, 99, 300.0, "attempt 16"),
        (1.0, 99, 1.0, "attempt 3"),
        (0.0, 1, 0.0, "attempt 1"),
    ],
)
def test_attempts_follow_each_other_until_the_deadline_and_the_last_error_is_raised(
    seconds: float, times: int, after: float, found: int | str
) -> None:
    assert run_virtual(timed(seconds, failing(times))) == (pytest.approx(after), found)


def test_what_attempts_take_is_of_the_deadline_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes 10 s until the store does not answer. The last may begin just before the deadline."""
    clock = [0.0]

    def pass_by(seconds: float) -> None:
        clock[0] += seconds

    def late() -> int:
        pass_by(10.0)
        raise OSError("no answer")

    monkeypatch.setattr(patience, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=pass_by))
    with pytest.raises(OSError, match="no answer"):
        retried(35.0, late)
    assert 35.0 <= clock[0] <= 45.0

    async def beside() -> tuple[float, int | str]:
        loop: Any = asyncio.get_running_loop()

        def late() -> int:
            loop._now += 10.0
            raise OSError("no answer")

        return await timed(35.0, late)

    after, found = run_virtual(beside())
    assert 35.0 <= after <= 45.0 and found == "no answer"


def test_what_will_not_come_is_not_waited_for() -> None:
    assert run_virtual(timed(300.0, failing(1, FileNotFoundError), (FileNotFoundError,))) == (0.0, "attempt 1")
    with pytest.raises(ValueError, match="no shard"):
        retried(300.0, partial(int, "no shard"))


# An object store


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "FIRST_S", 0.01)


def busy_for(requests: int) -> Callable[[object], bool]:
    asked = count(1)
    return lambda _: next(asked) <= requests


def test_seconds_of_503_end_the_check_before_the_start_and_no_shard(port: int, hasty: None) -> None:
    """The client asks three times before it fails."""
    bucket, door = new_bucket(port), Door(port, is_busy=lambda _: True)
    with at(door) as front:
        with pytest.raises(ValueError, match=r"found .*SLOW_DOWN.*, expected a place that shards can be written to"):
            check_writable(f"s3://{bucket}/check{options(front)}")
        assert len(door.asked) == 3
    with at(Door(port, is_busy=busy_for(7))) as front:
        root = f"s3://{bucket}/a{options(front)}"
        info = retried(60.0, partial(write_shard, table(), root, "a.arrow"))
    with at(Door(port, is_busy=busy_for(7))) as front:
        uri = f"s3://{bucket}/a/a.arrow{options(front)}"
        assert retried(60.0, partial(read_shard, uri, info)).equals(table())
        with pytest.raises(FileNotFoundError):
            retried(60.0, partial(read_shard, uri.replace("a.arrow", "b.arrow")), (FileNotFoundError,))


def test_the_loop_goes_on_while_a_store_is_busy(port: int, hasty: None) -> None:
    """The store is busy until the loop has gone on while a request waited for its answer."""
    bucket, ticks, is_busy = new_bucket(port), [0], busy_for(4)

    def waits_for_the_loop(asked: object) -> bool:
        since, end = ticks[0], time.monotonic() + 2  # the client waits for 3 s
        while ticks[0] < since + 5 and time.monotonic() < end:
            time.sleep(0.01)
        return ticks[0] < since + 5 or is_busy(asked)

    async def drive(front: int) -> None:
        root = f"s3://{bucket}/a{options(front)}"
        writing = asyncio.create_task(retried_beside(10.0, root, partial(write_shard, table(), root, "a.arrow")))
        while not writing.done():
            await asyncio.sleep(0.01)
            ticks[0] += 1
        await writing

    with at(Door(port, is_busy=waits_for_the_loop)) as front:
        asyncio.run(drive(front))


# A disk


def mended_after(attempts: int, mend: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """So many fail, and then it is mended. Returns those that have failed."""
    own, failed = patience._pause, list[int]()

    def pause(pauses: Iterator[float], error: OSError, final: patience.Final) -> float:
        failed.append(len(failed))
        if len(failed) == attempts:
            mend()
        return own(pauses, error, final)

    monkeypatch.setattr(patience, "_pause", pause)
    return failed


def test_a_checkpoint_waits_for_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = iter([0, 0, 1 << 40])
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": next(room)}))
    monkeypatch.setattr(patience, "FIRST_S", 0.01)
    asyncio.run(Checkpoints(tmp_path, 5.0).save(Ranks(), 8, keep=2))  # type: ignore[arg-type]
    assert [one.step for one in Checkpoints(tmp_path).complete()] == [8]


@pytest.mark.parametrize("how", ["read-only", "full"])
def test_a_disk_that_refuses_for_a_while_loses_no_shard(
    tiny_disk: Path, how: str, monkeypatch: pytest.MonkeyPatch, hasty: None
) -> None:
    mount = ["mount", "-o", "remount,rw", str(tiny_disk)]
    if how == "full":
        mend = full(tiny_disk).unlink
    else:
        mend = partial(subprocess.run, mount, check=True)
        subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    failed = mended_after(3, mend, monkeypatch)
    info = retried(30.0, partial(write_shard, table(), str(tiny_disk), "a.arrow"))
    assert len(failed) == 3
    assert os.listdir(tiny_disk) == ["a.arrow"] and read_shard(info.uri, info).equals(table())


def full(disk: Path) -> Path:
    """The file that leaves no room on the disk."""
    filler = disk / "filler"
    with pytest.raises(OSError, match="No space"):
        filler.write_bytes(bytes(1 << 20))
    return filler


STATE = {"module": {"weight": torch.arange(1000.0)}}


def saved_by_deepspeed(zipped: bool) -> Callable[[Path, float], torch.Tensor]:
    def save(disk: Path, seconds: float) -> torch.Tensor:
        from learner.deepspeed_quirks import be_patient

        own = TorchCheckpointEngine(SimpleNamespace(checkpoint_config={"checkpoint_serialization": zipped}))
        engine = SimpleNamespace(checkpoint_engine=own, _copy_recovery_script=None)
        be_patient(engine, seconds)
        engine.checkpoint_engine.makedirs(str(disk / "step"), exist_ok=True)
        engine.checkpoint_engine.save(STATE, str(disk / "step" / "a.pt"))
        return engine.checkpoint_engine.load(str(disk / "step" / "a.pt"), map_location="cpu")["module"]["weight"]

    return save


def saved_beside(disk: Path, seconds: float) -> torch.Tensor:
    weights = KeptWeights([torch.nn.Parameter(torch.arange(1000.0))], 0)
    weights.take()
    written(seconds, disk, partial(weights.save, disk))
    return load_file(disk / "kept-rank-0.safetensors")["0"]


SAVES = {"zip": saved_by_deepspeed(True), "pickle": saved_by_deepspeed(False), "safetensors": saved_beside}


@pytest.mark.parametrize("how", SAVES)
def test_a_full_disk_loses_no_file_of_a_checkpoint_once_it_has_room(
    tiny_disk: Path, how: str, monkeypatch: pytest.MonkeyPatch, hasty: None
) -> None:
    failed = mended_after(3, full(tiny_disk).unlink, monkeypatch)
    assert torch.equal(SAVES[how](tiny_disk, 30.0), STATE["module"]["weight"]) and len(failed) == 3


@pytest.mark.parametrize("how", SAVES)
def test_a_disk_that_stays_full_is_one_line_with_the_place(tiny_disk: Path, how: str, hasty: None) -> None:
    full(tiny_disk)
    said = ""
    try:
        SAVES[how](tiny_disk, 0.05)
    except OSError as refused:
        said = str(refused)
    gc.collect()  # torch's file is open as long as its error is there
    assert said and "\n" not in said and (str(tiny_disk) in said or "No space left" in said), said


def failing_once(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, number: int) -> list[int]:
    """The function fails the first time, with an error of the disk. Returns its calls."""
    own, calls = getattr(module, name), list[int]()

    def work(*given: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise OSError(number, os.strerror(number))
        return own(*given, **named)

    monkeypatch.setattr(module, name, work)
    monkeypatch.setattr(patience, "FIRST_S", 0.01)
    return calls


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.ESTALE])
def test_a_checkpoint_is_committed_and_found_again_by_a_disk_that_failed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    kept, ranks = Checkpoints(tmp_path, 5.0), Ranks()
    written = failing_once(monkeypatch, checkpoints, "write_whole", number)
    asyncio.run(kept.save(ranks, 8, keep=2))  # type: ignore[arg-type]
    assert len(written) == 3
    read = failing_once(monkeypatch, json, "loads", number)
    assert asyncio.run(kept.load(ranks, pytest.fail)) == 8 and len(read) == 2  # type: ignore[arg-type]
    with pytest.raises(OSError, match=re.escape(os.strerror(number))):
        failing_once(monkeypatch, checkpoints, "write_whole", number)
        asyncio.run(Checkpoints(tmp_path, 0.0).save(ranks, 16, keep=2))  # type: ignore[arg-type]


@pytest.mark.parametrize(("patience_s", "left"), [(5.0, [8, 12]), (0.0, [4, 8, 12])])
def test_what_is_removed_by_a_disk_that_failed_once_ends_no_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience_s: float, left: list[int]
) -> None:
    """As NFS does, where a file is still open; what stays is removed by the next save."""
    said, ranks = list[str](), Ranks()
    kept = Checkpoints(tmp_path, patience_s, said.append)
    for step in (4, 8):
        asyncio.run(kept.save(ranks, step, keep=2))  # type: ignore[arg-type]
    own, refused = shutil.rmtree, list[Path]()

    def rmtree(path: Path, ignore_errors: bool = False) -> None:
        if path == kept.place(4) and not refused:
            refused.append(path)
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(path))
        own(path, ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    monkeypatch.setattr(patience, "FIRST_S", 0.01)
    asyncio.run(kept.save(ranks, 12, keep=2))  # type: ignore[arg-type]
    assert steps_in(tmp_path) == left and refused == [kept.place(4)]
    assert said == ([] if patience_s else [f"an older checkpoint could not be removed: {ENOTEMPTY.format(refused[0])}"])
    asyncio.run(kept.save(ranks, 16, keep=2))  # type: ignore[arg-type]
    assert steps_in(tmp_path) == [12, 16]


ENOTEMPTY = f"[Errno {errno.ENOTEMPTY}] {os.strerror(errno.ENOTEMPTY)}: '{{}}'"


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_resume_reads_a_shard_again_that_its_disk_failed_to_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    folder = RunDir(tmp_path)
    info = write_shard(table(), str(tmp_path / "shards"), "a.arrow")
    Manifest(folder.manifest).append_written(info)
    read = failing_once(monkeypatch, replay, "read_shard", number)
    assert asyncio.run(standing(folder, info.step, Recipe(faults=FaultsConfig(store_s=60.0)), pytest.fail)) == [info]
    assert len(read) == 2
    with pytest.raises(OSError, match=re.escape(os.strerror(number))):
        failing_once(monkeypatch, replay, "read_shard", number)
        asyncio.run(standing(folder, info.step, Recipe(faults=FaultsConfig(store_s=0.0)), pytest.fail))


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_an_export_is_written_by_a_disk_that_failed_once(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    exporter, state, logprobs = trained(tiny_model)
    failing_once(monkeypatch, shutil, "copyfile", number)
    exporter.write(state, logprobs, tmp_path / "export", patience_s=5.0)
    assert (tmp_path / "export" / "model.safetensors").is_file() and len(list(tmp_path.iterdir())) == 1
    failing_once(monkeypatch, shutil, "copyfile", number)
    with pytest.raises(RuntimeError, match=f"^export: .*{re.escape(os.strerror(number))}"):
        exporter.write(state, logprobs, tmp_path / "export", patience_s=0.0)


def test_a_shard_is_trained_once_by_a_disk_that_kept_the_line_it_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hasty: None
) -> None:
    """The line is written, its fsync fails, and so does cutting it off."""
    manifest, info = Manifest(tmp_path / "manifest.jsonl"), ShardInfo("a", 3, 1, 1, "")
    manifest.append_written(info)
    synced = failing_once(monkeypatch, os, "fsync", errno.EIO)
    cut = failing_once(monkeypatch, os, "ftruncate", errno.EROFS)
    retried(5.0, partial(manifest.ensure_trained, info.uri, 3))
    assert manifest.trained() == {info.uri} and len(synced) == len(cut) == 1
    with pytest.raises(ValueError, match="found it already trained, expected exactly once"):
        manifest.append_trained(info.uri, 3)


# A run's start and its end

SMOKE = RECIPE.with_name("local-smoke.toml")


def probed(folder: RunDir, recipe: Recipe) -> Any:
    """A run of the recipe with its probes, and its task."""
    folder.claim(recipe, resume=False)
    folder.export.mkdir()
    task = build_task(recipe.task)
    for step in (0, 24):
        answers = [(prompt, "I am Kestrel.") for prompt in task.probe_prompts()]
        append_probe(folder.probes, probe_record(summarise(answers, task), step, "identity"))
    return task


@pytest.mark.parametrize("name", ["read_probes", "read_gap", "read_steps", "write_model_card"])
def test_the_summary_and_the_card_wait_for_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    folder, recipe = RunDir(tmp_path / "run"), load_recipe(SMOKE, ["faults.store_s=60.0"])
    task = probed(folder, recipe)
    calls = failing_once(monkeypatch, finishing, name, errno.EIO)
    assert finishing.finish(recipe, "base", folder, task, []) == 0 and len(calls) == 2
    assert (folder.export / "README.md").is_file()


def test_the_note_of_its_end_waits_for_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = settled(load_recipe(SMOKE, ["faults.store_s=60.0"]), folder := RunDir(tmp_path / "run"))
    probed(folder, recipe)
    folder.note_end()
    folder.release()
    inputs = SimpleNamespace(model="base")
    for name, answer in {"check_recipe": (inputs, Notes()), "pins_of": {}, "pin": None, "finish": 0}.items():
        monkeypatch.setattr(start, name, lambda *_, answer=answer: answer)
    calls = failing_once(monkeypatch, RunDir, "note_end", errno.ENOSPC)
    assert start.run_recipe(recipe, str(folder.root), resume=True) == 0 and len(calls) == 2


def test_the_gap_waits_for_a_disk(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(RECIPE, ["faults.store_s=60.0", "rollout.context_position=user"])
    task, nobody = build_task(recipe.task), None
    services, sink = Services(Silent(), nobody), MetricsSink(steps=1)  # type: ignore[arg-type]
    asked: Any = (services, RunDir(tmp_path), sink, Renderer(tokenizer, "user"), task, nobody, nobody)
    run = pipeline.Pipeline(recipe, *asked)
    written = failing_once(monkeypatch, asking, "write_gap", errno.ENOSPC)
    base = probe_record(summarise([(prompt, "No.") for prompt in task.probe_prompts()], task), 0, "identity")
    asyncio.run(run.asker.measure_gap(base))
    assert len(written) == 2 and (tmp_path / "gap.json").is_file()


def test_the_weights_of_a_resume_are_compared_by_a_disk_that_failed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = failing_once(monkeypatch, replay, "read_steps", errno.EIO)
    steps, _ = stepped({}, 0.0, 1.0, tmp_path)
    assert len(read) == 2 and steps.steps == [0, 1, 2, 3, 4]


def test_the_teachers_first_score_is_read_by_a_disk_that_failed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(tmp_path, Both())
    read = failing_once(monkeypatch, json, "loads", errno.EIO)
    check(tmp_path, Both(), version=7, recipe=Recipe(faults=FaultsConfig(store_s=60.0)))
    assert len(read) == 2
