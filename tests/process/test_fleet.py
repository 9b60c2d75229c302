"""The owner of the engines, over stand-ins: who starts when, who is told what, and who is named."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from ray.exceptions import RayTaskError

from cluster.config import Recipe
from cluster.faults import FaultsConfig
from cluster.fleet.calls import Died
from cluster.fleet.canary import CanaryText
from cluster.fleet.fleet import ENDING_S, Fleet
from cluster.fleet.launch import engine_environment
from cluster.fleet.placement import Share, make_plan
from cluster.fleet.processes import end_processes
from cluster.fleet.ray_cluster import local_arguments
from cluster.fleet.ray_engine import RayEngine
from evidence.records import Floats, Ids
from learner.config import LearnerConfig
from rollout.config import EngineConfig
from rollout.cores import num_cores
from tests.fakes import FakeEngine, fake_logprobs
from tests.virtual_time import run_virtual

CONFIGS = {"student": EngineConfig(), "teacher": EngineConfig()}
IDS = np.arange(4, dtype=np.int32)


def fleet_of(
    students: Sequence[Any], teachers: Sequence[Any] = (), configs: Any = CONFIGS, faults: Any = None, **options: Any
) -> Fleet:
    """Of engines that have started, take part in pushes and serve."""
    pools = {"student": students, "teacher": teachers}
    makers = {pool: [partial(lambda engine: engine, engine) for engine in engines] for pool, engines in pools.items()}
    fleet = Fleet(makers, configs, faults or FaultsConfig(max_restarts=0), **options)
    for seat in fleet.roster.everyone():
        seat.stands = seat.enlisted = True
    for pool in pools:
        fleet.roster.admit(pool)
    return fleet


def named(count: int, pool: str = "student") -> list[FakeEngine]:
    return [FakeEngine(name=f"{pool} engine {index}") for index in range(count)]


async def at_once() -> None:
    pass


async def never() -> None:
    await asyncio.Event().wait()


# Start


def test_a_ray_of_the_runs_own_has_the_jobs_cores(tmp_path: Path) -> None:
    """Ray itself counts the machine's, or a quota's; what the learner's threads are shared out of is this."""
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(mine)})
    try:
        cores = local_arguments(tmp_path)["num_cpus"]
    finally:
        os.sched_setaffinity(0, mine)
    assert cores == 1 and make_plan(Recipe(), [Share(cores, 0)]).threads == 1
    assert local_arguments(tmp_path)["num_cpus"] == num_cores()


class Starting(FakeEngine):
    def __init__(self, name: str, running: list[int], start: Callable[[], Awaitable[None]] = at_once) -> None:
        super().__init__(name=name)
        self._running, self._start = running, start

    async def start(self) -> str:
        self._running.append(self._running[-1] + 1)
        await asyncio.sleep(0.01)
        await self._start()
        self._running.append(self._running[-1] - 1)
        return "10.0.0.1"


@pytest.mark.parametrize(("in_turn", "most"), [(True, 1), (False, 3)])
def test_engines_start_side_by_side_or_in_turn(in_turn: bool, most: int) -> None:
    running = [0]
    students = [Starting(f"student engine {index}", running) for index in range(2)]
    fleet = fleet_of(students, [Starting("teacher engine 0", running)], in_turn=in_turn)
    hosts = asyncio.run(fleet.roster.start())
    assert hosts == dict.fromkeys(["student engine 0", "student engine 1", "teacher engine 0"], "10.0.0.1")
    assert max(running) == most and len(running) == 7
    spans = fleet.activity.take()
    assert sorted((span.lane, span.name) for span in spans) == [(name, "start") for name in sorted(hosts)]
    assert all(span.end > span.begin for span in spans)


@pytest.mark.parametrize("in_turn", [True, False])
def test_an_engine_that_does_not_start_is_named(in_turn: bool) -> None:
    fleet = fleet_of([Starting("student engine 0", [0], never)], named(1, "teacher"), in_turn=in_turn)
    with pytest.raises(TimeoutError, match=r"^start of student engine 0: no answer within 300 s$"):
        run_virtual(fleet.roster.start())


DIED = "it died: its process ended with status -9"


@pytest.mark.parametrize(
    ("cause", "said"),
    [
        (TypeError("got an unexpected keyword"), "TypeError: got an unexpected keyword"),
        (AttributeError("no attribute 'model'"), "AttributeError: no attribute 'model'"),
        (ValueError("no such dtype\n found"), "no such dtype found"),
        (Died("it died: its process ended with status -9\n  last lines of a.log:\n    CUDA error"), DIED),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_engine_that_fails_to_start_shows_its_log_whatever_it_raised(cause: Exception, said: str) -> None:
    async def start() -> str:
        raise RayTaskError("start", "traceback", cause)

    async def log_tail() -> str:
        return "  last lines of a.log:\n    CUDA error"

    actor = SimpleNamespace(start=SimpleNamespace(remote=start), log_tail=SimpleNamespace(remote=log_tail))
    with pytest.raises(RuntimeError) as raised:
        asyncio.run(RayEngine("student engine 0", actor).start())
    assert isinstance(raised.value, Died) == isinstance(cause, Died)  # after which what stood before starts again
    assert str(raised.value) == f"student engine 0 did not start: {said}\n  last lines of a.log:\n    CUDA error"


@pytest.mark.parametrize(("gpus", "in_turn"), [(1, True), (3, False), (0, False)])
def test_who_shares_a_gpu_starts_in_turn(gpus: int, in_turn: bool) -> None:
    """Unless its cache is planned (test_sizing), vLLM takes what others allocate while it starts for its own."""
    assert make_plan(Recipe(), [Share(8, gpus)]).starts_in_turn is in_turn


@pytest.mark.parametrize("gpus", [1, 2])
def test_an_adapter_in_float32_is_refused_on_gpus(gpus: int) -> None:
    lora = LearnerConfig(lora_rank=8)
    recipes = {d: Recipe(student=EngineConfig(dtype=d), learner=lora) for d in ("float32", "float16", "bfloat16")}
    with pytest.raises(ValueError, match=r"^student\.dtype: found 'float32', expected bfloat16 or float16: with lea"):
        make_plan(recipes["float32"], [Share(8, gpus)])
    assert make_plan(recipes["float32"], [Share(8, 0)]).device == "cpu"
    assert all(make_plan(recipes[d], [Share(8, gpus)]).device == "cuda" for d in ("float16", "bfloat16"))


@pytest.mark.parametrize(("gpus", "told"), [(1, {"VLLM_ALLOW_INSECURE_SERIALIZATION": "1"}), (3, {})])
def test_handles_of_cuda_ipc_may_travel_to_the_engines_workers(gpus: int, told: dict[str, str]) -> None:
    assert engine_environment(make_plan(Recipe(), [Share(8, gpus)])) == told


# Work


def test_a_pool_without_engines_is_the_students_without_their_adapter() -> None:
    asked: list[bool] = []

    class Engine(FakeEngine):
        async def score(self, prompts: Sequence[Ids], responses: Sequence[Ids], base: bool = False) -> list[Floats]:
            asked.append(base)
            return await super().score(prompts, responses)

    fleet = fleet_of([Engine()])
    for pool in ("teacher", "student"):
        (found,) = asyncio.run(fleet.pool(pool).score([IDS], [IDS]))
        assert np.array_equal(found, fake_logprobs(IDS, IDS))
    assert asked == [True, False]


# The weight hand-off. Of real engines: tests/engine/test_weight_handoff.py.


def test_every_engine_is_told_its_own_ranks() -> None:
    """Two engines of two workers each, as vLLM's NCCL and this project's gloo number them."""
    students, others = named(2), named(1, "teacher")
    configs = {"student": EngineConfig(tensor_parallel_size=2), "teacher": EngineConfig()}
    fleet = fleet_of(students, others, configs)
    verb, info = "init_weight_transfer_engine", {"rank_offset": 1, "world_size": 5}
    asyncio.run(fleet.tell("student", verb, (info,), 1.0))
    asyncio.run(fleet.tell("student", "start_weight_update", (), 1.0))
    told = [engine.told for engine in students]
    assert told[0] == [(verb, info), ("start_weight_update",)]
    assert told[1] == [(verb, info | {"rank_offset": 3}), ("start_weight_update",)]
    assert not others[0].told


class Deaf(FakeEngine):
    async def tell(self, verb: str, *arguments: object) -> None:
        await never()


@pytest.mark.parametrize("verb", ["update_weights", "wake_up"])
def test_an_engine_that_does_not_answer_is_named(verb: str) -> None:
    fleet = fleet_of([*named(1), Deaf(name="student engine 1")])
    work = fleet.wake_up(0.1) if verb == "wake_up" else fleet.tell("student", verb, ({},), 0.1)
    with pytest.raises(TimeoutError, match=r"no answer from student engine 1 \(of 2\) within 0\.1 s$"):
        asyncio.run(work)


def test_all_engines_fall_asleep_and_wake_up() -> None:
    students, teachers = named(2), named(1, "teacher")
    fleet = fleet_of(students, teachers)
    asyncio.run(fleet.sleep(1.0))
    asyncio.run(fleet.wake_up(1.0))
    assert all(engine.told == [("sleep",), ("wake_up",)] for engine in (*students, *teachers))


@pytest.mark.parametrize(("version", "digest"), [(3, "ab"), (2, "cd"), (3, "")])
def test_an_engine_that_holds_something_else_is_named(version: int, digest: str) -> None:
    engines = named(2)
    for engine in engines:
        engine.version, engine.digest = 3, "ab"
    engines[1].version, engines[1].digest = version, digest
    proof = fleet_of(engines).prove_weights("student", 3, "ab", 1.0)
    if (version, digest) == (3, "ab"):
        asyncio.run(proof)
        return
    with pytest.raises(RuntimeError, match=f"student engine 1 holds version {version} with digest {digest}, expected"):
        asyncio.run(proof)


class Scoring(FakeEngine):
    """Its log-probs are given, and come after it was asked and `before` ended."""

    def __init__(self, name: str, *logprobs: float, before: Callable[[], Awaitable[Any]] = at_once) -> None:
        super().__init__(name=name)
        self._logprobs, self._before = logprobs, before

    async def score(self, prompts: Sequence[Ids], responses: Sequence[Ids], base: bool = False) -> list[Floats]:
        assert not base
        await self._before()
        return [np.array(self._logprobs, np.float32)]


def canary(*engines: Scoring, seconds: float = 60.0) -> dict[str, float]:
    text = CanaryText(np.arange(3), np.arange(2), np.array([-1.0, -2.0], np.float32))
    return asyncio.run(fleet_of(engines).canary("student", 7, text, seconds))


def test_the_canary_is_each_engines_mean_difference() -> None:
    found = canary(Scoring("a", -1.0, -2.0), Scoring("b", -1.02, -2.06))
    assert found == {"a": 0.0, "b": pytest.approx(0.04, abs=1e-6)}


def test_engines_are_asked_for_the_canary_at_once_and_a_silent_one_is_named() -> None:
    all_are_asked = asyncio.Barrier(4)
    together = [Scoring(f"student engine {n}", -1.0, -2.0, before=all_are_asked.wait) for n in range(4)]
    assert canary(*together) == {f"student engine {n}": 0.0 for n in range(4)}
    silent = Scoring("student engine 1", before=never)
    with pytest.raises(TimeoutError, match=r"^canary at version 7: no answer from student engine 1 \(of 2\) within"):
        canary(Scoring("student engine 0", -1.0, -2.0), silent, seconds=1.0)


# The frozen teacher. Of what it does to a run: tests/process/test_teacher_check.py.


@pytest.mark.parametrize("without", [False, True], ids=["engines of its own", "the student's, without their adapter"])
def test_a_teacher_that_scores_otherwise_is_named(without: bool) -> None:
    good, lost = FakeEngine(name="engine 0", model="base"), FakeEngine(name="engine 1", model="other")
    for engines, wrong in (([good], ""), ([good, lost], "engine 1"), ([lost, good], "engine 1")):
        fleet = fleet_of(engines) if without else fleet_of(named(1), engines)
        text = CanaryText(IDS, IDS, asyncio.run(fleet_of([good]).teacher_scores(IDS, IDS)))
        proof = fleet.prove_teacher(text, 0.1, 1.0)
        if not wrong:
            asyncio.run(proof)
            continue
        with pytest.raises(RuntimeError, match=f"check of the frozen teacher: {wrong} differs from the first one by"):
            asyncio.run(proof)


def test_after_a_wake_up_the_teacher_is_checked_once_it_has_a_reference() -> None:
    teacher = FakeEngine(name="teacher engine 0", model="base")
    fleet = fleet_of(named(1), [teacher])
    asyncio.run(fleet.prove_teacher(CanaryText(IDS, IDS, fake_logprobs(IDS, IDS, "base")), 0.1, 1.0))
    asyncio.run(fleet.sleep(1.0))
    teacher.model = "uniform"
    with pytest.raises(RuntimeError, match="check of the frozen teacher: teacher engine 0 differs"):
        asyncio.run(fleet.wake_up(1.0))


# End


def test_every_engine_is_stopped_and_one_that_hangs_is_killed() -> None:
    class Hung(FakeEngine):
        async def stop(self) -> None:
            await never()

    engines = [FakeEngine(), Hung()]
    run_virtual(fleet_of(engines).stop())
    assert engines[0].told == [("stop",), ("kill",)] and engines[1].told == [("kill",)]


ENDING = """
import pathlib, signal, sys, time
def end(*_):
    time.sleep(0.5)
    pathlib.Path(sys.argv[1]).touch()
    sys.exit()
signal.signal(signal.SIGTERM, end if sys.argv[2] == "ends" else signal.SIG_IGN)
print(flush=True)
time.sleep(600)
"""


class WithProcess(FakeEngine):
    """It tells its process to end and waits for nothing, as an engine's actor does."""

    def __init__(self, ended: Path, what: str) -> None:
        super().__init__()
        self.process = psutil.Popen([sys.executable, "-c", ENDING, str(ended), what], stdout=subprocess.PIPE)
        self.process.stdout.readline()  # it heeds signals
        self.own = self.process.pid, self.process.create_time()

    async def stop(self) -> None:
        self.process.terminate()

    def kill(self, grace_s: float = 0.0) -> None:
        end_processes([self.own], grace_s)


@pytest.mark.parametrize(("what", "grace_s"), [("ends", 120.0), ("hangs", 1.0)])
def test_an_engine_that_was_stopped_has_its_grace_to_end_and_is_killed_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, grace_s: float
) -> None:
    """The grace is ours here: a busy machine takes its time, and a test should not."""
    assert ENDING_S > 0
    monkeypatch.setattr("cluster.fleet.fleet.ENDING_S", grace_s)
    engine, begun = WithProcess(tmp_path / "ended", what), time.monotonic()
    asyncio.run(fleet_of([engine]).stop())
    try:
        was_killed = engine.process.wait(60) == -signal.SIGKILL
        assert (was_killed, (tmp_path / "ended").exists()) == (what == "hangs", what == "ends")
        assert what == "ends" or time.monotonic() - begun >= grace_s
    finally:
        end_processes([engine.own])
