"""A run that is asked to stop, by real signals to this process."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayTaskError

from cluster.config import TeacherConfig, load_recipe
from cluster.errors import Preempted
from cluster.faults import FaultsConfig
from cluster.fleet.calls import Died
from cluster.fleet.placement import Share, make_plan
from cluster.fleet.ray_cluster import reserved
from cluster.observe.sinks import MetricsSink
from cluster.run.checkpoints import Checkpoints
from cluster.run.handover import Pushed
from cluster.run.pipeline import Pipeline
from cluster.run.replay import Resumed
from cluster.run.rundir import RunDir
from cluster.run.start import _serve, _survive
from cluster.run.stop import heeding
from tests.process.test_checkpoints import Ranks
from tests.runs import RECIPE, ROOT


class Stepping(Pipeline):
    """Steps that signal this process at given ones, which take `seconds` then, and that save as often as `every`."""

    def __init__(self, signals: dict[int, list[signal.Signals]], seconds: float, folder: Path, every: int) -> None:
        run = SimpleNamespace(steps=5, probe_every=0, keep_checkpoints=2)
        self.recipe = SimpleNamespace(  # type: ignore[assignment]
            run=run, faults=FaultsConfig(store_s=60.0), teacher=TeacherConfig()
        )
        self.asker: Any = self
        self._teacher_version = 0
        self.checkpoints, self.every = Checkpoints(folder), every
        self.ranks = Ranks()
        self.learner: Any = self.ranks
        self.signals, self.seconds = signals, seconds
        self._handover: Any = self
        self._teacher_check: Any = SimpleNamespace(run=self.unchecked)
        self.rollout: Any = None
        self.run_dir = RunDir(Path("nowhere"))
        self.sink: Any = self
        self._first = None
        self._choice: Any = SimpleNamespace(is_level=lambda version: False)
        self.steps: list[int] = []

    def go_on(self, bound: float | None) -> None:
        pass

    async def push(self, pool: str, version: int) -> Any:
        return Pushed("", 0.0)

    def say(self, line: str) -> None:
        pass

    stage = say

    async def unchecked(self, *_: object) -> None:
        pass

    async def probe(self, step: int, weights: str = "", seed: int | None = None, held: int | None = None) -> Any:
        return None

    async def measure_gap(self, base: Any) -> None:
        pass

    async def _end(self, version: int) -> None:
        pass

    async def _step(self, step: int) -> None:
        for number in self.signals.get(step, []):
            os.kill(os.getpid(), number)
            await asyncio.sleep(0)
        await asyncio.sleep(self.seconds if step in self.signals else 0)
        self.steps.append(step)
        if self.every and (step + 1) % self.every == 0:
            await self._save(step + 1)


def stepped(
    signals: dict[int, list[signal.Signals]], seconds: float, grace_s: float, folder: Path, every: int = 0
) -> tuple[Stepping, str]:
    """What was done, and what the run ended with."""

    async def drive() -> tuple[Stepping, str]:
        pipeline = Stepping(signals, seconds, folder, every)
        try:
            with heeding(grace_s) as stop:
                pipeline._stop = stop
                await pipeline.run(Resumed())
        except Preempted as ended:
            return pipeline, str(ended)
        return pipeline, ""

    return asyncio.run(drive())


def test_the_pace_is_of_this_processs_steps_with_what_is_between_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of 10 s, a probe of 30 s, a step of 10 s."""
    now = [110.0]
    monkeypatch.setattr("cluster.run.pipeline.time", SimpleNamespace(perf_counter=lambda: now[0]))
    pipeline = Stepping({}, 0.0, tmp_path, 0)
    assert pipeline._pace(4, begun=100.0) == 10.0
    now[0] = 150.0
    assert pipeline._pace(5, begun=140.0) == 25.0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_once_the_step_is_ended_and_saved(tmp_path: Path, number: signal.Signals) -> None:
    pipeline, said = stepped({2: [number]}, 0.2, 600.0, tmp_path)
    assert said == f"stopped by {number.name} after step 3: --resume continues from there"
    assert (pipeline.steps, pipeline.ranks.saved) == ([0, 1, 2], [3])


def test_what_the_step_has_saved_the_stop_does_not_save_again(tmp_path: Path) -> None:
    """It would be no checkpoint until it is whole, and the grace may end before that."""
    pipeline, _ = stepped({3: [signal.SIGTERM]}, 0.2, 600.0, tmp_path, every=2)
    assert (pipeline.steps, pipeline.ranks.saved) == ([0, 1, 2, 3], [2, 4])


@pytest.mark.parametrize(
    ("signals", "grace_s"),
    [([signal.SIGTERM], 0.1), ([signal.SIGTERM], 0.0), ([signal.SIGINT, signal.SIGINT], 600.0)],
    ids=["a step beyond the grace", "no grace", "asked twice"],
)
def test_a_step_that_does_not_fit_is_given_up(tmp_path: Path, signals: list[signal.Signals], grace_s: float) -> None:
    pipeline, said = stepped({1: signals}, 120.0, grace_s, tmp_path)
    assert said == f"stopped by {signals[0].name} amid a step: --resume continues from what stands"
    assert (pipeline.steps, pipeline.ranks.saved) == ([0], [])


def test_what_ends_after_the_steps_ends_as_it_does() -> None:
    """As the services do, also where that outlasts what a step had of the grace."""
    ended = list[str]()

    async def drive() -> None:
        with heeding(0.3) as stop:
            try:
                with stop.between_steps():
                    os.kill(os.getpid(), signal.SIGTERM)
                    while not stop.asked:
                        await asyncio.sleep(0)
                    raise Preempted(f"stopped by {stop.asked} after step 3")
            finally:
                end = asyncio.get_running_loop().create_future()
                asyncio.get_running_loop().call_later(0.5, end.set_result, None)  # beyond the grace
                await end
                ended.append("services")

    with pytest.raises(Preempted, match=r"^stopped by SIGTERM after step 3$"):
        asyncio.run(drive())
    assert ended == ["services"]


def test_before_the_first_step_nothing_is_waited_for() -> None:
    async def drive() -> None:
        with heeding(30.0):
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.Event().wait()

    with pytest.raises(Preempted, match="stopped by SIGTERM"):
        asyncio.run(drive())


def test_while_the_cluster_gives_nothing_it_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what was asked for is given back."""
    asked = list[str]()

    class Group:
        def wait(self, timeout_seconds: float) -> bool:
            asked.append("wait")
            if len(asked) == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return False

    monkeypatch.setattr("cluster.fleet.ray_cluster.placement_group", lambda *_, **__: Group())
    monkeypatch.setattr("cluster.fleet.ray_cluster.remove_placement_group", lambda _: asked.append("removed"))

    async def drive() -> None:
        with heeding(30.0):
            async with reserved(make_plan(load_recipe(RECIPE), [Share(16.0, 0.0)]), 3600.0):
                pytest.fail("it was given nothing")

    with pytest.raises(Preempted, match="stopped by SIGTERM"):
        asyncio.run(drive())
    assert 3 <= asked.count("wait") < 6 and asked[-1] == "removed"


def test_after_a_death_amid_a_step_nothing_is_waited_for() -> None:
    async def drive() -> None:
        with heeding(600.0) as stop:
            with pytest.raises(RuntimeError), stop.between_steps():
                raise RuntimeError("learner rank 0 died")
            os.kill(os.getpid(), signal.SIGTERM)
            async with asyncio.timeout(300):
                await asyncio.Event().wait()

    with pytest.raises(Preempted, match="stopped by SIGTERM"):
        asyncio.run(drive())


def test_a_death_after_it_was_asked_starts_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the nodes of a cluster are told to end, and some are faster than the driver."""
    served = list[int]()

    async def serve(*_: Any) -> None:
        served.append(1)
        stop.asked = "SIGTERM"
        raise Died("the Ray node of learner rank 1 died")

    folder = RunDir(tmp_path)
    folder.manifest.write_text("")
    stop = SimpleNamespace(asked="")
    with pytest.raises(Preempted, match=r"^stopped by SIGTERM, and the Ray node of learner rank 1 died: --resume"):
        survived(folder, serve, stop, monkeypatch)
    assert served == [1]


@pytest.mark.parametrize("shards", [0, 1])
@pytest.mark.parametrize("stands", [True, False])
def test_a_death_before_the_first_shard_starts_services_again_that_have_stood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: int, stands: bool
) -> None:
    """Without a shard there is nothing to resume. What never stood would die again."""
    resumes = list[bool]()

    async def serve(*given: Any) -> None:
        resumes.append(given[3])
        if stands:
            given[-2].set()
        if len(resumes) == 1:
            raise Died("learner rank 1 died")

    folder = RunDir(tmp_path)
    if shards:
        folder.manifest.write_text("")
    survive = partial(survived, folder, serve, SimpleNamespace(asked=""), monkeypatch)
    if not (shards or stands):
        with pytest.raises(Died):
            survive()
    else:
        survive()
        assert resumes == [False, bool(shards)]


@pytest.mark.parametrize("comes", [True, False])
def test_a_cluster_without_room_for_what_died_is_asked_again_until_a_node_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comes: bool
) -> None:
    """As where a node is gone with what was on it. As often as after a death; then the run's end says both."""
    none = TimeoutError("placement: the cluster did not give 1 CPU")
    outcomes = [Died("the Ray node of learner rank 1 died"), none, none, None if comes else none]

    async def serve(*_: Any) -> None:
        if error := outcomes.pop(0):
            raise error

    folder = RunDir(tmp_path)
    folder.manifest.write_text("")
    said = r"^placement: the cluster did not give 1 CPU; before that, the Ray node of learner rank 1 died$"
    with nullcontext() if comes else pytest.raises(RuntimeError, match=said):
        survived(folder, serve, SimpleNamespace(asked=""), monkeypatch)
    assert outcomes == []


@pytest.mark.parametrize(("stands", "starts"), [(True, 4), (False, 1)])
def test_a_start_that_fails_where_one_has_stood_is_tried_again_as_often_as_after_a_death(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stands: bool, starts: int
) -> None:
    begun = list[int]()

    async def begin(*_: Any) -> dict[str, str]:
        begun.append(len(begun))
        if len(begun) > 1 or not stands:
            raise RayTaskError("start", "", RuntimeError("student engine 0 did not start")).as_instanceof_cause()
        return {}

    said = r"^starting engines and learner: student engine 0 did not start$"
    with pytest.raises(RuntimeError, match=said) as caught:
        dying(tmp_path, begin, list[Path](), monkeypatch)
    assert len(begun) == starts and isinstance(caught.value, Died) == stands


def test_bad_input_that_a_start_shows_is_named_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def begin(*_: Any) -> dict[str, str]:
        raise ValueError("teacher.url: found 2 models")

    with pytest.raises(ValueError, match=r"^teacher\.url: found 2 models$"):
        dying(tmp_path, begin, list[Path](), monkeypatch)


def test_the_export_is_rehearsed_at_the_first_start_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that refuses later would end the run at a restart, or cost all of them."""
    begun, rehearsed = list[int](), list[Path]()

    async def begin(*_: Any) -> dict[str, str]:
        begun.append(len(begun))
        return {}

    with pytest.raises(Died, match=r"^step 3: learning: learner rank 0 died$"):
        dying(tmp_path, begin, rehearsed, monkeypatch)
    assert len(begun) == 4 and rehearsed == [tmp_path / "export"]


def dying(folder: Path, begin: Any, rehearsed: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A run over services that start by `begin`, and die amid a step."""
    sink = MetricsSink(9)

    async def rehearse(place: Path) -> None:
        rehearsed.append(place)

    def dies(*_: Any) -> None:
        sink.stage("step 3: learning")
        raise Died("learner rank 0 died")

    @asynccontextmanager
    async def running(*_: Any) -> AsyncIterator[Any]:
        yield SimpleNamespace(learner=SimpleNamespace(rehearse_export=rehearse))

    (folder / "manifest.jsonl").write_text("")
    within: Any = lambda *_: nullcontext()  # noqa: E731
    stands_in = {"running": running, "start": begin, "Choice": dies, "exporting": within, "announced": within}
    for name, stand_in in {**stands_in, "watch": lambda _: None}.items():
        monkeypatch.setattr(f"cluster.run.start.{name}", stand_in)
    survived(RunDir(folder), _serve, SimpleNamespace(asked=""), monkeypatch, sink)


def survived(
    folder: RunDir, serve: Any, stop: Any, monkeypatch: pytest.MonkeyPatch, sink: MetricsSink | None = None
) -> None:
    """The run over services of which each start is `serve`."""
    recipe = load_recipe(RECIPE)
    plan = make_plan(recipe, [Share(16.0, 0.0)])
    monkeypatch.setattr("cluster.run.start._serve", serve)
    monkeypatch.setattr("cluster.run.start.plan_for", lambda _: plan)
    monkeypatch.setattr("cluster.run.start.check_caches", lambda *_: None)
    inputs: Any = SimpleNamespace(model="", task=SimpleNamespace(rates=("self-name",)))
    asyncio.run(_survive(recipe, folder, sink or MetricsSink(9), False, inputs, stop))


def test_a_death_is_called_a_restart_as_long_as_one_follows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the run that was not at its first step there is nothing to start again with."""
    called = list[str]()

    async def serve(*given: Any) -> None:
        called.append(given[-1](Died("learner rank 1 died")))
        raise Died("learner rank 1 died")

    recipe, inputs = load_recipe(RECIPE), SimpleNamespace(model="")
    monkeypatch.setattr("cluster.run.start._serve", serve)
    monkeypatch.setattr("cluster.run.start.plan_for", lambda _: make_plan(recipe, [Share(16.0, 0.0)]))
    monkeypatch.setattr("cluster.run.start.check_caches", lambda *_: None)
    for name, expected in (("new", ["failed"]), ("learned", ["restarting"] * 3 + ["failed"])):
        called.clear()
        (tmp_path / name).mkdir()
        folder = RunDir(tmp_path / name)
        if name == "learned":
            folder.manifest.write_text("")
        with pytest.raises(Died):
            asyncio.run(_survive(recipe, folder, MetricsSink(9), False, inputs, SimpleNamespace(asked="")))  # type: ignore[arg-type]
        assert called == expected


def test_a_cancellation_of_somebody_elses_stays_one() -> None:
    async def drive() -> None:
        with heeding(30.0):
            asyncio.get_running_loop().call_soon(asyncio.current_task().cancel)  # type: ignore[union-attr]
            await asyncio.Event().wait()

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(drive())
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


LOSES_ITS_HEAD = """
import sys
from pathlib import Path
from types import SimpleNamespace
from cluster.observe.sinks import MetricsSink
from cluster.run.boundary import end_at_once
from cluster.run.rundir import RunDir

folder = RunDir(Path(sys.argv[1]))
folder.hold()
sink = MetricsSink(9)
sink.stage("step 3: sampling")
end_at_once(sink, folder, "Ray's head is gone", stop=SimpleNamespace(asked=sys.argv[2]))
"""


@pytest.mark.parametrize(
    ("asked", "status", "told"), [("", 1, ""), ("SIGTERM", 75, " after SIGTERM had asked the run to stop")]
)
def test_a_run_whose_head_ends_before_it_can_stop_is_to_be_resumed(
    tmp_path: Path, asked: str, status: int, told: str
) -> None:
    """As where a whole cluster is ended: its head may go first."""
    command = [sys.executable, "-c", LOSES_ITS_HEAD, str(tmp_path), asked]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    line = f"edge-opd: step 3: sampling: Ray's head is gone{told}; --resume continues from what stands"
    assert (done.returncode, done.stderr.splitlines()[-1]) == (status, line)
