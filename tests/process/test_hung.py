"""A disk that neither refuses nor answers, as a network's whose server is gone: a pipe that nobody writes to stands for
a file there."""

import asyncio
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.config import Recipe, load_recipe
from cluster.errors import Preempted
from cluster.fleet.assembly import Services
from cluster.fleet.calls import Died
from cluster.observe.sinks import MetricsSink
from cluster.run import checkpoints, pipeline, start
from cluster.run.boundary import is_lost, run_time
from cluster.run.checkpoints import COMPLETE, Checkpoints
from cluster.run.replay import catch_up
from cluster.run.rundir import RunDir
from cluster.run.stop import heeding
from evidence import patience
from evidence.manifest import Manifest
from evidence.patience import Hung, bounded, retried_beside, retried_within
from evidence.records import ShardInfo
from rollout.render import Renderer
from rollout.tasks import build_task
from tests.process.test_checkpoints import Ranks
from tests.runs import RECIPE, ROOT

NO_ANSWER = "found no answer within {} s, expected a disk or a store that answers or refuses"


@pytest.fixture
def server() -> Iterator[threading.Event]:
    """What waits for it waits until the test is over."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what does nothing but hang."""
    monkeypatch.setattr(patience, "HUNG_S", 0.2)


@pytest.fixture
def pipes() -> Iterator[Any]:
    """Makes a pipe in a file's place; who reads it finds nothing in it once the test is over."""
    made = list[Path]()

    def pipe(path: Path) -> Path:
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        made.append(path)
        return path

    yield pipe
    for path in made:
        with suppress(OSError):  # nobody reads it any more
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))


def test_an_attempt_that_hangs_is_the_last_and_names_file_and_seconds(server: threading.Event, hasty: None) -> None:
    tried = list[int]()

    def hangs() -> None:
        tried.append(1)
        server.wait()

    said = re.escape(f"/nfs/a.arrow: {NO_ANSWER.format(0.2)}")
    for attempts in (
        lambda: retried_within(300.0, "/nfs/a.arrow", hangs),
        lambda: asyncio.run(retried_beside(300.0, "/nfs/a.arrow", hangs)),
        lambda: bounded("/nfs/a.arrow", hangs),
    ):
        with pytest.raises(Hung, match=f"^{said}$"):
            attempts()
    assert len(tried) == 3


def test_what_answers_is_as_it_is() -> None:
    """Also what is no error of the disk's."""
    assert bounded("a", lambda: 3) == 3 == asyncio.run(retried_beside(0.0, "a", lambda: 3))
    for attempt in (bounded, partial(retried_within, 0.0), lambda *given: asyncio.run(retried_beside(0.0, *given))):
        with pytest.raises(ZeroDivisionError):
            attempt("a", lambda: 1 // 0)
        with pytest.raises(FileNotFoundError):
            attempt("a", lambda: Path("nowhere").read_bytes())


HANGS = """
import asyncio, sys, threading
from evidence import patience
patience.HUNG_S = 0.2
print("begun", flush=True)
try:
    asyncio.run(patience.retried_beside(300.0, "a", threading.Event().wait))
except OSError as hung:
    sys.exit(str(hung))
"""


def test_a_thread_that_hangs_does_not_keep_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert (done.returncode, done.stderr) == (1, f"a: {NO_ANSWER.format(0.2)}\n")


def test_it_is_no_death_after_which_services_would_start_again() -> None:
    sink = MetricsSink(9)
    sink.stage("step 3: learning")
    with pytest.raises(RuntimeError, match=r"^step 3: learning: a: found no answer") as caught, run_time(sink):
        raise Hung(f"a: {NO_ANSWER.format(900)}")
    assert not isinstance(caught.value, Died) and not is_lost(Hung("a"))


def test_a_checkpoint_whose_disk_hangs_ends_with_its_file_and_so_does_its_removal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: threading.Event
) -> None:
    class Saving(Ranks):
        async def save(self, folder: Path, step: int) -> Any:
            files = await super().save(folder, step)
            monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: server.wait())
            monkeypatch.setattr(patience, "HUNG_S", 0.2)
            monkeypatch.setattr(patience, "REMOVAL_S", 0.2)
            return files

    monkeypatch.setattr(checkpoints, "write_whole", lambda *_: server.wait())
    kept = Checkpoints(tmp_path, 300.0)
    with pytest.raises(Hung, match=f"^{re.escape(str(kept.place(8) / COMPLETE))}: found no answer"):
        asyncio.run(kept.save(Saving(), 8, keep=2))  # type: ignore[arg-type]


def test_a_run_does_not_begin_in_a_folder_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: threading.Event, hasty: None
) -> None:
    monkeypatch.setattr(start, "settled", lambda *_: server.wait())
    monkeypatch.setattr(start, "check_recipe", lambda *_: pytest.fail("the run went on"))
    with pytest.raises(Hung, match=rf"^{re.escape(str(tmp_path))}: found no answer within 0\.2 s"):
        start.run_recipe(load_recipe(RECIPE), str(tmp_path), resume=True)


def over(folder: RunDir, tokenizer: Any) -> pipeline.Pipeline:
    recipe = load_recipe(RECIPE, ["rollout.context_position=user"])
    asked: Any = (MetricsSink(1), Renderer(tokenizer, "user"), build_task(recipe.task), None, None)
    return pipeline.Pipeline(recipe, Services(None, None), folder, *asked)  # type: ignore[arg-type]


def test_while_a_disk_hangs_at_a_resume_a_signal_is_heard(tmp_path: Path, tokenizer: Any, pipes: Any) -> None:
    folder = RunDir(tmp_path)
    pipes(folder.metrics)

    async def resume() -> None:
        with heeding(600.0):
            over(folder, tokenizer)
            asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), signal.SIGTERM)
            await catch_up(None, folder, MetricsSink(1), Recipe(), None)  # type: ignore[arg-type]

    with pytest.raises(Preempted, match=r"^stopped by SIGTERM"):
        asyncio.run(resume())


def test_what_a_resume_takes_of_the_records_is_the_newest_bound(tmp_path: Path) -> None:
    """A step that was learned again has none. A disk that fails once is asked again."""
    folder = RunDir(tmp_path)
    records = {0: 0.05, 1: 0.04, 2: None}
    read = {step: SimpleNamespace(canary_bound=bound) for step, bound in records.items()}
    choice, answers = SimpleNamespace(resume=nothing), [OSError(errno.EIO, "no answer"), read]

    def second_time(_: Path) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("cluster.run.replay.read_steps", second_time)
        resumed = asyncio.run(catch_up(Ranks(), folder, MetricsSink(1), Recipe(), choice))  # type: ignore[arg-type]
    assert resumed.bound == 0.04 and not answers


async def nothing(_: int) -> None:
    pass


LOSES_ITS_HEAD = """
import os, sys
from pathlib import Path
from cluster.observe.sinks import MetricsSink
from cluster.run import rundir
from cluster.run.boundary import end_at_once

rundir.REMOVAL_S = 0.2
folder = rundir.RunDir(Path(sys.argv[1]))
folder.hold()
(folder.root / "owner.json").unlink()
os.mkfifo(folder.root / "owner.json")
end_at_once(MetricsSink(9), folder, "Ray's head is gone")
"""


def test_a_run_that_ends_at_once_does_not_wait_for_its_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LOSES_ITS_HEAD, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 1 and "Ray's head is gone" in done.stderr


def test_a_step_whose_line_hangs_names_the_manifest(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, server: threading.Event, hasty: None
) -> None:
    folder = RunDir(tmp_path)
    run = over(folder, tokenizer)
    monkeypatch.setattr(os, "fsync", lambda _: server.wait())
    write = partial(run.manifest.append_written, ShardInfo("a", 3, 1, 1, ""))
    with pytest.raises(Hung, match=f"^{re.escape(str(folder.manifest))}: found no answer"):
        asyncio.run(run._stored(folder.manifest, write))
    server.set()
    assert Manifest(folder.manifest).written().keys() <= {"a"}
