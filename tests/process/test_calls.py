"""Waiting for actors: every wait has a deadline, and says for whom; a death is one line."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import OutOfMemoryError, RayActorError

from cluster.fleet.calls import LIFE_S, Died, all_within, ask, beside, each_within, within
from cluster.fleet.ray_quirks import local_rank, reason
from tests.virtual_time import run_virtual

FOR_EVER = 3600.0  # seconds: a test has 600


async def answer(value: str, after_s: float = 0.0) -> str:
    await asyncio.sleep(after_s)
    return value


async def fail(after_s: float = 0.0) -> str:
    await asyncio.sleep(after_s)
    raise RuntimeError("rank 1 died")


def ranks(*answers: Any) -> dict[str, Any]:
    return {f"rank {place}": one for place, one in enumerate(answers)}


def test_the_one_who_is_late_is_named() -> None:
    assert asyncio.run(within(5, "the probe", answer("a"))) == "a"
    with pytest.raises(TimeoutError, match=r"^the probe: no answer within 0\.05 s$"):
        asyncio.run(within(0.05, "the probe", answer("a", FOR_EVER)))


def test_a_deadline_within_the_work_keeps_its_own_name() -> None:
    async def rollouts() -> None:
        raise TimeoutError("rollouts of group 000003-001: not done within 600 s")

    with pytest.raises(TimeoutError, match=r"^rollouts of group 000003-001: not done within 600 s$"):
        asyncio.run(within(5, "rollout service at step 3", rollouts()))


def test_every_rank_answers_in_its_place() -> None:
    assert asyncio.run(all_within(5, "learner", ranks(answer("a", 0.05), answer("b")))) == ["a", "b"]
    assert asyncio.run(all_within(5, "learner", {})) == []


@pytest.mark.parametrize(
    ("delays", "named"),
    [
        ((0, FOR_EVER, 0), r"rank 1 \(of 3\)"),
        ((FOR_EVER, FOR_EVER, 0), r"rank 0, rank 1 \(of 3\)"),
        ((FOR_EVER,), r"rank 0 \(of 1\)"),
    ],
)
def test_a_late_rank_is_named_and_not_waited_for(delays: tuple[float, ...], named: str) -> None:
    with pytest.raises(TimeoutError, match=rf"^learner at step 3: no answer from {named} within 0\.1 s$"):
        asyncio.run(all_within(0.1, "learner at step 3", ranks(*(answer("a", delay) for delay in delays))))


@pytest.mark.parametrize("delay", [FOR_EVER, 0], ids=["one that waits for it", "one that is done"])
def test_a_rank_that_fails_ends_the_waiting(delay: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.fleet.calls.DEATH_S", 0.1)
    with pytest.raises(RuntimeError, match="rank 1 died"):
        asyncio.run(all_within(FOR_EVER, "learner", ranks(answer("a", delay), fail())))


@pytest.mark.parametrize("places", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_a_death_is_told_and_not_what_the_others_noticed_of_it(places: tuple[int, ...]) -> None:
    """The collectives of the ranks beside it fail at once; Ray tells of the death some seconds later."""

    async def noticed() -> str:
        raise RuntimeError("learner at step 3: Connection closed by peer")

    async def died() -> str:
        await asyncio.sleep(2.0)
        raise Died("learner rank 1 died: its worker process has died")

    answers = dict(enumerate((noticed(), died(), answer("a", 1.0))))
    with pytest.raises(Died, match=r"^learner rank 1 died"):
        run_virtual(all_within(60.0, "learner", {f"rank {place}": answers[place] for place in places}))


# Who died. Of real processes: tests/engine/test_pipeline.py.

SHORT_OF_MEMORY = (
    "2 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.0.0.2, ID: 1f) was "
    "22.17GB used / 23.54GB limit (0.941923)\nOOM kill reason: Memory usage exceeded\n...\n"
)
NO_MORE = "The actor died unexpectedly before finishing this task.\n\tpid: 7\nIts process has died. Some common causes"


def dying(lost: Exception) -> Any:
    async def step() -> None:
        raise lost

    return SimpleNamespace(step=SimpleNamespace(remote=step))


@pytest.mark.parametrize("amid_s", [LIFE_S / 2, 1.5 * LIFE_S], ids=["between two questions", "amid one"])
def test_work_that_is_given_up_leaves_no_question_behind(amid_s: float) -> None:
    """One would fail unheard as the service is killed, of which asyncio prints a traceback."""

    async def drive() -> set[Any]:
        others = asyncio.all_tasks()
        task = asyncio.create_task(beside(answer("a", FOR_EVER), lambda: answer("here", FOR_EVER)))
        await asyncio.sleep(amid_s)
        task.cancel()
        await asyncio.wait({task})
        await asyncio.sleep(0.1)
        return asyncio.all_tasks() - others

    assert run_virtual(drive()) == set()


@pytest.mark.parametrize(("work_s", "said"), [(1.5, "rank 1 died"), (2.5, "is silent")], ids=["work", "life"])
def test_the_first_failure_of_work_and_life_ends_both(work_s: float, said: str) -> None:
    """At once it is that of the work, which names more."""

    async def silent() -> None:
        await asyncio.sleep(LIFE_S / 2)
        raise RuntimeError("is silent")

    async def drive() -> set[Any]:
        others = asyncio.all_tasks()
        with pytest.raises(RuntimeError, match=said):
            await beside(fail(work_s * LIFE_S), silent)
        await asyncio.sleep(0.1)
        return asyncio.all_tasks() - others

    assert run_virtual(drive()) == set()


def test_a_host_without_memory_is_reported_by_the_first_line_of_rays_account() -> None:
    assert reason(OutOfMemoryError(SHORT_OF_MEMORY)) == SHORT_OF_MEMORY.splitlines()[0]


def test_an_actor_that_dies_is_named_and_the_reason_is_rays_last_line() -> None:
    with pytest.raises(RuntimeError, match=r"^learner rank 1 died: Its process has died\.$"):
        asyncio.run(ask("learner rank 1", dying(RayActorError("0a1b", NO_MORE)), "step"))


NODES = {
    "The actor is dead because its owner has died. Owner Id: 01f Owner Ip address: 10.0.0.2 Owner worker exit type: "
    "SYSTEM_ERROR Worker exit detail: Owner's node has crashed.": "the raylet of this host died, Ray's own process, "
    "and with it learner rank 0",
    "The actor died because its node has died. Node Id: 1f": "the Ray node of learner rank 0 died: The actor died "
    "because its node has died. Node Id: 1f",
}


@pytest.mark.parametrize("said", NODES)
def test_a_node_that_dies_is_no_death_of_the_actors_own(said: str) -> None:
    """The words are those of Ray 2.60.0, after its raylet was killed."""
    with pytest.raises(RuntimeError) as caught:
        asyncio.run(ask("learner rank 0", dying(RayActorError("0a1b", said)), "step"))
    assert str(caught.value) == NODES[said]
    assert isinstance(caught.value, Died) == ("Ray node" in NODES[said])  # on another host it can start again


def test_an_actor_that_dies_while_it_streams_is_named() -> None:
    async def parts() -> Any:
        yield answer("first")
        raise RayActorError("0a1b", NO_MORE)

    async def read() -> list[str]:
        return [part async for part in each_within(5, "learner rank 0", "exporting", parts())]

    with pytest.raises(RuntimeError, match=r"^learner rank 0 died: Its process has died\.$"):
        asyncio.run(read())


@pytest.mark.parametrize(
    ("rank", "hosts", "seen", "expected"),
    [(0, "a", None, 0), (2, "aba", None, 1), (2, "aab", None, 0), (2, "aba", "1", 0)],
)
def test_a_rank_takes_the_next_gpu_of_its_host_or_the_only_one_that_it_sees(
    rank: int, hosts: str, seen: str | None, expected: int
) -> None:
    environment = {"CUDA_VISIBLE_DEVICES": seen} if seen else {}
    assert local_rank(rank, list(hosts), environment) == expected
