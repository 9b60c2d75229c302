"""Waiting for actors: every wait has a deadline, and says for whom."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.exceptions import OutOfMemoryError, RayActorError

from cluster.config import Recipe, WeightsConfig
from cluster.fleet import actors
from cluster.fleet.placement import Share, make_plan
from cluster.fleet.services import Services, all_within, engine_environment, within


async def answer(value: str, after_s: float = 0.0) -> str:
    await asyncio.sleep(after_s)
    return value


async def fail(after_s: float = 0.0) -> str:
    await asyncio.sleep(after_s)
    raise RuntimeError("rank 1 died")


def test_the_one_who_is_late_is_named() -> None:
    assert asyncio.run(within(5, "the probe", answer("a"))) == "a"
    with pytest.raises(TimeoutError, match=r"^the probe: no answer within 0\.05 s$"):
        asyncio.run(within(0.05, "the probe", answer("a", 60)))


def test_a_deadline_within_the_work_keeps_its_own_name() -> None:
    async def rollouts() -> None:
        raise TimeoutError("rollouts of group 000003-001: not done within 600 s")

    with pytest.raises(TimeoutError, match=r"^rollouts of group 000003-001: not done within 600 s$"):
        asyncio.run(within(5, "rollout service at step 3", rollouts()))


def test_every_rank_answers_in_its_place() -> None:
    assert asyncio.run(all_within(5, "learner", "rank", [answer("a", 0.05), answer("b")])) == ["a", "b"]


@pytest.mark.parametrize(
    ("delays", "named"), [((0, 60, 0), "rank 1 of 3"), ((60, 60, 0), "rank 0, 1 of 3"), ((60,), "rank 0 of 1")]
)
def test_a_late_rank_is_named_and_not_waited_for(delays: tuple[float, ...], named: str) -> None:
    begun = time.monotonic()
    with pytest.raises(TimeoutError, match=rf"^learner at step 3: no answer from {named} within 0\.1 s$"):
        asyncio.run(all_within(0.1, "learner at step 3", "rank", [answer("a", delay) for delay in delays]))
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize("delay", [60, 0], ids=["one that waits for it", "one that is done"])
def test_a_rank_that_fails_ends_the_waiting(delay: float) -> None:
    begun = time.monotonic()
    with pytest.raises(RuntimeError, match="rank 1 died"):
        asyncio.run(all_within(60, "learner", "rank", [answer("a", delay), fail()]))
    assert time.monotonic() - begun < 30


# Who died. Of real processes: tests/engine/test_pipeline.py.

SHORT_OF_MEMORY = (
    "2 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.0.0.2, ID: 1f) was "
    "22.17GB used / 23.54GB limit (0.941923)\nOOM kill reason: Memory usage exceeded\n...\n"
)


def test_a_host_without_memory_is_told_in_the_first_line_of_rays_account() -> None:
    services = Services.__new__(Services)
    told = services.obituary(OutOfMemoryError(SHORT_OF_MEMORY))
    assert told == SHORT_OF_MEMORY.splitlines()[0]


def test_an_actor_is_named_by_its_id_and_the_reason_is_rays_last_line() -> None:
    services = Services.__new__(Services)
    services._names = {"0a1b": "learner rank 1"}
    account = (
        "The actor died unexpectedly before finishing this task.\n\tpid: 7\nIts process has died. Some common causes"
    )
    assert services.obituary(RayActorError("0a1b", account)) == "learner rank 1 died: Its process has died."


def test_a_step_that_fails_in_the_learner_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def overflow(rows: object) -> None:
        raise RuntimeError("gradient norm: found inf")

    monkeypatch.setattr(actors, "read_shard", lambda uri, expected: None)
    monkeypatch.setattr(actors, "train_rows", lambda table: [])
    kind = actors.LearnerActor.__ray_metadata__.modified_class
    actor = kind.__new__(kind)
    actor._trainer = SimpleNamespace(step=overflow)
    with pytest.raises(RuntimeError, match=r"^learner at step 3: gradient norm: found inf$"):
        actor.step(SimpleNamespace(uri="a shard", step=3))


# The canary. Of real engines: tests/engine/test_weight_handoff.py, and the whole run that it stops: test_pipeline.py.


async def answer_at_once() -> None:
    pass


def scoring(*logprobs: float, in_a_list: bool, after: Callable[[], Awaitable[Any]] = answer_at_once) -> Any:
    """A handle of an actor whose score is this: of many rows for an engine, of one for the learner."""

    async def score(*_: Any) -> Any:
        await after()
        found = np.array(logprobs, np.float32)
        return [found] if in_a_list else found

    return SimpleNamespace(score=SimpleNamespace(remote=score))


def canary(*engines: Any) -> float:
    services = Services.__new__(Services)
    services.recipe = Recipe(weights=WeightsConfig(deadline_s=1.0))
    services._pools = {"student": list(engines)}
    services.learners = [scoring(-1.0, -2.0, in_a_list=False)]
    return asyncio.run(services.canary("student", np.arange(3), np.arange(2), 7))


def test_the_canary_is_the_worst_engines_mean_difference() -> None:
    engines = scoring(-1.0, -2.0, in_a_list=True), scoring(-1.02, -2.06, in_a_list=True)
    assert canary(*engines) == pytest.approx(0.04, abs=1e-6)


@pytest.mark.parametrize("last", [-2.3, float("nan")])
def test_an_engine_that_disagrees_is_named(last: float) -> None:
    with pytest.raises(RuntimeError, match="canary at version 7: student engine 1 differs from the learner by "):
        canary(scoring(-1.0, -2.0, in_a_list=True), scoring(-1.0, last, in_a_list=True))


def test_engines_are_asked_for_the_canary_at_once_and_a_silent_one_is_named() -> None:
    all_are_asked = asyncio.Barrier(4)
    together = [scoring(-1.0, -2.0, in_a_list=True, after=all_are_asked.wait) for _ in range(4)]
    assert canary(*together) == pytest.approx(0.0, abs=1e-6)
    silent = scoring(-1.0, -2.0, in_a_list=True, after=asyncio.Event().wait)
    with pytest.raises(TimeoutError, match=r"^canary at version 7: no answer from student engine 1 of 2 within 1 s$"):
        canary(scoring(-1.0, -2.0, in_a_list=True), silent)


# Engines that share the learner's GPU. Of real ones: tests/gpu/test_gpu.py.


@pytest.mark.parametrize(("gpus", "most"), [(1, 1), (3, 3)], ids=["one GPU for all", "a GPU each"])
def test_who_shares_a_gpu_starts_in_turn(gpus: int, most: int) -> None:
    """vLLM takes what the GPU's other processes allocate while it starts for its own."""
    starting: list[int] = [0]

    async def begin(*_: Any) -> str:
        starting.append(starting[-1] + 1)
        await asyncio.sleep(0.01)
        starting.append(starting[-1] - 1)
        return "10.0.0.1"

    services = Services.__new__(Services)
    services.recipe, services.plan = Recipe(), make_plan(Recipe(), [Share(8, gpus)])
    services._names = {"a": "student engine 0", "b": "teacher engine 0", "c": "learner rank 0"}
    handle = SimpleNamespace(start=SimpleNamespace(remote=begin))
    services._pools, services.learners = {"student": [handle], "teacher": [handle]}, [handle]
    hosts = asyncio.run(services._start_all([]))
    assert hosts == {"student engine 0": "10.0.0.1", "teacher engine 0": "10.0.0.1"}
    assert max(starting) == most and len(starting) == 7


@pytest.mark.parametrize(("gpus", "told"), [(1, {"VLLM_ALLOW_INSECURE_SERIALIZATION": "1"}), (3, {})])
def test_handles_of_cuda_ipc_may_travel_to_the_engines_workers(gpus: int, told: dict[str, str]) -> None:
    assert engine_environment(make_plan(Recipe(), [Share(8, gpus)])) == told


def test_engines_wake_up_once_the_learner_has_given_its_memory_back() -> None:
    told: list[str] = []

    def handle(name: str) -> Any:
        def method(called: str) -> Any:
            async def remote() -> None:
                told.append(f"{name} {called}")

            return SimpleNamespace(remote=remote)

        return SimpleNamespace(**{called: method(called) for called in ("sleep", "wake_up", "release_cache")})

    services = Services.__new__(Services)
    services.recipe = Recipe()
    services._pools = {"student": [handle("student")], "teacher": [handle("teacher")]}
    services.learners = [handle("learner")]
    asyncio.run(services.sleep())
    assert sorted(told) == ["student sleep", "teacher sleep"]
    asyncio.run(services.wake())
    assert told[2] == "learner release_cache" and sorted(told[3:]) == ["student wake_up", "teacher wake_up"]

    services._pools["teacher"] = []  # as beside an adapter
    asyncio.run(services.sleep())
    assert told[5:] == ["student sleep"]


def test_an_engine_that_does_not_wake_up_is_named() -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    services = Services.__new__(Services)
    services.recipe = Recipe(weights=WeightsConfig(deadline_s=0.1))
    services._pools = {"student": [SimpleNamespace(wake_up=SimpleNamespace(remote=never))]}
    services.learners = [SimpleNamespace(release_cache=SimpleNamespace(remote=answer_at_once))]
    with pytest.raises(
        TimeoutError, match=r"^engines that wake up: no answer from student engine 0 of 1 within 0\.1 s$"
    ):
        asyncio.run(services.wake())
