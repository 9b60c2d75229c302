"""The stream of groups: what begins when, what is taken, what is too old, and who is told when it goes wrong."""

import asyncio
from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import Any

import numpy as np
import pytest

from cluster.fleet.scheduler import EnginePool, Scheduler
from evidence.advantage import Rewards
from evidence.records import RolloutRequest, Sample, ScoredSample
from rollout.config import SamplingConfig
from rollout.requests import GroupRequests
from rollout.stages import Meter, StageTime
from rollout.stream import RolloutStream
from rollout.waits import Deadlines, Turnstile
from rollout.worker import Group
from tests.fakes import FakeEngine
from tests.virtual_time import run_virtual

IDS = np.array([1], np.int32)
LOGPROBS = np.zeros(1, np.float32)


def group_of(step: int, slot: int, size: int = 2) -> GroupRequests:
    name = f"{step:06d}-{slot:03d}"
    rows = (RolloutRequest(f"{name}-{i}", name, name, False, "system", IDS, IDS) for i in range(size))
    return GroupRequests(step * 3 + slot, 100 * step + slot, tuple(rows), end_ids=(2,))


class Requests:
    """Three groups a step, less in a step of `refused`."""

    def __init__(self, **refused: int) -> None:
        self.refused = {int(key.removeprefix("step")): count for key, count in refused.items()}

    def of(self, step: int) -> tuple[list[GroupRequests], int]:
        refused = self.refused.get(step, 0)
        return [group_of(step, slot) for slot in range(3 - refused)], refused


class Engines:
    """Samples when a group is let go, or at once; every sample is of the version that the engines held at its start."""

    def __init__(
        self, waits: Callable[[GroupRequests], bool] = lambda group: False, holds: Collection[str] = ()
    ) -> None:
        self.waits, self.gates = waits, dict[str, asyncio.Event]()
        self.holds, self.free, self.version = holds, asyncio.Event(), 0  # what no engine takes before it is free
        self.begun: list[tuple[str, int]] = []  # names and seeds
        self.failing: Exception | None = None

    async def sample(self, group: GroupRequests, student_version: int, begun: Callable[[], None]) -> list[Sample]:
        if group.name in self.holds:
            await self.free.wait()
            student_version = self.version
        begun()
        self.begun.append((group.name, group.seed))
        if self.waits(group) and (group.name not in self.gates):
            await self.gates.setdefault(group.name, asyncio.Event()).wait()
        if self.failing is not None:
            raise self.failing
        return [Sample(row, IDS, LOGPROBS, "stop", student_version, student_version) for row in group.rows]

    async def verify(self, samples: Sequence[Sample]) -> Rewards:
        return (None,) * len(samples)

    async def score(
        self, group: GroupRequests, samples: Sequence[Sample], rewards: Rewards, teacher_version: int
    ) -> Group:
        await asyncio.sleep(0)
        scored = tuple(ScoredSample(sample, LOGPROBS, LOGPROBS, teacher_version) for sample in samples)
        return Group(group, scored, rewards)

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.begun]


def stream_of(
    engines: Engines, max_lag: int, end: int = 9, deadline_s: float = 5.0, order: str = "begun", **refused: int
) -> RolloutStream:
    return RolloutStream(engines, Requests(**refused), end, max_lag, deadline_s, order)  # type: ignore[arg-type]


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return run_virtual(asyncio.wait_for(work, 20))


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def steps(names: Sequence[str]) -> list[int]:
    return [int(name.split("-")[0]) for name in names]


def test_with_a_bound_of_0_a_step_begins_with_its_version_and_is_taken_whole_in_order() -> None:
    async def drive() -> None:
        engines = Engines(waits=lambda group: group.name.endswith("000"))
        stream = stream_of(engines, max_lag=0)
        for step in range(3):
            stream.advance(step)
            await settle()
            assert steps(engines.names) == [s for s in range(step + 1) for _ in range(3)]
            engines.gates[f"{step:06d}-000"].set()  # the first is done last
            taken = await stream.take(step)
            assert [group.requests.place for group in taken.groups] == [3 * step, 3 * step + 1, 3 * step + 2]
            assert {group.version_min for group in taken.groups} == {step}
            assert (taken.refused, taken.dropped) == (0, 0)

    run(drive())


@pytest.mark.parametrize("lag", [1, 2])
def test_the_bound_says_how_many_steps_are_under_way(lag: int) -> None:
    async def drive() -> None:
        engines = Engines(waits=lambda group: True)
        stream = stream_of(engines, max_lag=lag, end=4)
        stream.advance(0)
        await settle()
        assert steps(engines.names) == [step for step in range(lag + 1) for _ in range(3)]
        stream.advance(1)
        await settle()
        assert steps(engines.names)[-1] == lag + 1
        stream.advance(2), stream.advance(3)
        await settle()
        assert len(engines.begun) == 4 * 3  # and never one beyond the last step

    run(drive())


def test_a_resumed_run_begins_with_its_own_step() -> None:
    async def drive() -> None:
        engines = Engines()
        stream = stream_of(engines, max_lag=1)
        stream.advance(5)
        assert {group.requests.name.split("-")[0] for group in (await stream.take(5)).groups} <= {"000005", "000006"}
        assert set(steps(engines.names)) == {5, 6}

    run(drive())


@pytest.mark.parametrize("order", ["begun", "done"])
def test_a_run_resumed_with_a_lag_learns_from_every_group_once(order: str) -> None:
    """Before it stopped, steps 0 and 1 had taken two groups of step 2 ahead, and left two of their own."""

    async def drive() -> None:
        ahead, left = {"000002-000", "000002-001"}, {"000000-001", "000001-002"}
        learned = {group_of(step, slot).name for step in (0, 1) for slot in range(3)} - left | ahead
        engines = Engines()
        stream = stream_of(engines, max_lag=1, end=4, order=order)
        stream.resume(learned)
        taken = []
        for step in (2, 3):
            stream.advance(step)
            groups = (await stream.take(step)).groups
            assert len(groups) == 3 and {group.version_min for group in groups} <= {step - 1, step}
            taken += [group.requests.name for group in groups]
        assert sorted(taken) == sorted(left | {"000002-002"} | {group_of(3, slot).name for slot in range(3)})
        assert sorted(engines.names) == sorted(taken)

    run(drive())


def test_a_late_group_is_passed_by_while_a_later_step_can_take_it_and_then_waited_for() -> None:
    async def drive() -> None:
        engines = Engines(waits=lambda group: group.name == "000000-001")
        stream = stream_of(engines, max_lag=1, end=4)
        stream.advance(0)
        first = await stream.take(0)
        assert [group.requests.place for group in first.groups] == [0, 2, 3]  # one of step 1 in its place
        stream.advance(1)
        await settle()
        second = asyncio.create_task(stream.take(1))
        await settle()
        assert steps(engines.names) == [0, 0, 0, 1, 1, 1, 2, 2, 2] and not second.done()  # others are done, and wait
        engines.gates["000000-001"].set()
        assert [group.requests.place for group in (await second).groups] == [1, 4, 5]
        for step in (2, 3):
            groups = await taken(stream, step)
            assert [group.requests.place for group in groups.groups] == [3 * step, 3 * step + 1, 3 * step + 2]
            assert groups.dropped == 0 and {group.version_min for group in groups.groups} <= {step - 1, step}
        assert len(engines.begun) == 12

    run(drive())


def test_a_group_that_an_engine_took_late_may_be_learned_from_later() -> None:
    """With a bound of 2: it was given out at version 0 and begun at version 2, so that step 4 has to have it."""

    async def drive() -> None:
        engines = Engines(waits=lambda group: group.name == "000000-001", holds={"000000-001"})
        stream = stream_of(engines, max_lag=2, end=6)
        for step in (0, 1, 2, 3):
            groups = await taken(stream, step)
            assert 1 not in [group.requests.place for group in groups.groups]
            if step == 2:
                engines.version = 2
                engines.free.set()
                await settle()
        stream.advance(4)
        fifth = asyncio.create_task(stream.take(4))
        await settle()
        assert not fifth.done()
        engines.gates["000000-001"].set()
        assert next(group.requests.place for group in (await fifth).groups) == 1

    run(drive())


def test_what_is_passed_by_leaves_every_later_step_room() -> None:
    """With a bound of 2: six groups are due at step 2, which takes three. So step 1 has to have the others."""

    async def drive() -> None:
        engines = Engines(waits=lambda group: group.name < "000002")
        stream = stream_of(engines, max_lag=2, end=4)
        assert [group.requests.place for group in (await taken(stream, 0)).groups] == [6, 7, 8]
        stream.advance(1)
        second = asyncio.create_task(stream.take(1))
        for slot in range(3):
            await settle()
            assert not second.done()  # three of step 3 are done
            engines.gates[f"000000-{slot:03d}"].set()
        assert [group.requests.place for group in (await second).groups] == [0, 1, 2]
        stream.advance(2)
        third = asyncio.create_task(stream.take(2))
        await settle()
        assert not third.done()
        for slot in range(3):
            engines.gates[f"000001-{slot:03d}"].set()
        assert [group.requests.place for group in (await third).groups] == [3, 4, 5]
        assert [group.requests.place for group in (await taken(stream, 3)).groups] == [9, 10, 11]

    run(drive())


def test_what_several_later_steps_have_to_take_is_counted_together() -> None:
    """With a bound of 3: three groups are due at step 3 and six at step 4, and the two take six."""

    async def drive() -> None:
        engines = Engines(
            waits=lambda group: "000002" <= group.name < "000005", holds={f"000003-{slot:03d}" for slot in range(3)}
        )
        stream = stream_of(engines, max_lag=3, end=6)
        assert [group.requests.place for group in (await taken(stream, 0)).groups] == [0, 1, 2]
        stream.advance(1)
        engines.version = 1
        engines.free.set()
        await settle()
        assert [group.requests.place for group in (await stream.take(1)).groups] == [3, 4, 5]
        stream.advance(2)
        third = asyncio.create_task(stream.take(2))
        await settle()
        assert not third.done()  # though three of step 5 are done
        for slot in range(3):
            engines.gates[f"000002-{slot:03d}"].set()
        assert [group.requests.place for group in (await third).groups] == [6, 7, 8]

    run(drive())


@pytest.mark.parametrize("is_last", [True, False])
def test_in_the_other_order_a_late_group_is_passed_by_and_begun_again_once_it_is_too_old(is_last: bool) -> None:
    """is_last: of all that is done as step 2 asks; else it is done before groups of newer versions are."""

    async def drive() -> None:
        engines = Engines(waits=lambda group: group.name == "000000-001")
        stream = stream_of(engines, max_lag=1, order="done")
        stream.advance(0)
        first = await stream.take(0)
        assert [group.requests.place for group in first.groups] == [0, 2, 3]  # one of step 1 in its place
        stream.advance(1)
        await stream.take(1)
        if is_last:
            stream.advance(2)
        engines.gates["000000-001"].set()  # at last: of version 0, and step 2 takes none before version 1
        await settle()
        if not is_last:
            stream.advance(2)
            await settle()
        third = await stream.take(2)
        assert third.dropped == 2
        assert all(group.version_min >= 1 for group in third.groups)
        await settle()
        seeds = [seed for name, seed in engines.begun if name == "000000-001"]
        assert len(seeds) == len(set(seeds)) == 2
        stream.advance(3)
        places = [g.requests.place for step in (3, 4, 5) for g in (await taken(stream, step)).groups]
        assert 1 in places + [group.requests.place for group in third.groups]  # nothing is lost

    run(drive())


async def taken(stream: RolloutStream, step: int) -> Any:
    stream.advance(step)
    return await stream.take(step)


def test_refused_prompts_make_a_step_smaller() -> None:
    async def drive() -> None:
        stream = stream_of(Engines(), max_lag=0, step1=2)
        sizes = [(len(t.groups), t.refused) for t in [await taken(stream, step) for step in range(3)]]
        assert sizes == [(3, 0), (1, 2), (3, 0)]

    run(drive())


def test_a_failure_reaches_the_one_who_takes() -> None:
    async def drive() -> None:
        engines = Engines()
        engines.failing = RuntimeError("student engine 0 died")
        stream = stream_of(engines, max_lag=0)
        stream.advance(0)
        with pytest.raises(RuntimeError, match="student engine 0 died"):
            await stream.take(0)

    run(drive())


@pytest.mark.parametrize(("lag", "seconds"), [(0, "0.05"), (3, "0.2")])
def test_a_rollout_that_never_ends_is_named_at_its_deadline(lag: int, seconds: str) -> None:
    """With a lag it may have had the groups of so many other steps before it."""

    async def drive() -> None:
        engines = Engines(waits=lambda group: group.name == "000000-001")
        stream = stream_of(engines, max_lag=lag, end=1, deadline_s=0.05)
        stream.advance(0)
        with pytest.raises(TimeoutError, match=rf"^rollouts of group 000000-001: not done within {seconds} s$"):
            await stream.take(0)

    run(drive())


def test_a_deadline_that_is_paused_begins_anew() -> None:
    """Paused before the group begins, and amid it; the group itself never ends."""

    async def drive(at: float) -> float:
        deadlines, clock = Deadlines(), asyncio.get_running_loop().time
        stream = RolloutStream(Engines(waits=lambda group: True), Requests(), 1, 0, 2.0, "begun", deadlines)  # type: ignore[arg-type]
        loop, begun = asyncio.get_running_loop(), clock()
        loop.call_later(at, deadlines.pause, True)
        loop.call_later(at + 9.0, deadlines.pause, False)
        await asyncio.sleep(0.5)
        stream.advance(0)
        with pytest.raises(TimeoutError, match=r"^rollouts of group 000000-00[0-2]: not done within 2 s$"):
            await stream.take(0)
        return clock() - begun

    assert [run(drive(at)) for at in (0.0, 2.0)] == [11.0, 13.0]


def test_a_deadline_of_an_engines_own_keeps_its_name() -> None:
    async def drive() -> None:
        engines = Engines()
        engines.failing = TimeoutError("gloo: no answer within 120 s")
        stream = stream_of(engines, max_lag=0)
        stream.advance(0)
        with pytest.raises(TimeoutError, match=r"^gloo: no answer within 120 s$"):
            await stream.take(0)

    run(drive())


def test_scores_of_a_group_are_one_teachers() -> None:
    async def drive() -> None:
        engines = Engines(waits=lambda group: True)
        stream = stream_of(engines, max_lag=0)
        stream.advance(0)
        await settle()
        engines.gates["000000-000"].set()
        await settle()
        await stream.pause_scoring()
        engines.gates["000000-001"].set(), engines.gates["000000-002"].set()
        await settle()
        taking = asyncio.create_task(stream.take(0))
        await settle()
        assert not taking.done()
        await stream.resume_scoring(7)
        versions = [[one.teacher_version for one in group.scored] for group in (await taking).groups]
        assert versions == [[0, 0], [7, 7], [7, 7]]

    run(drive())


def test_a_closing_turnstile_waits_for_what_is_inside() -> None:
    async def drive() -> list[str]:
        turnstile, told = Turnstile(), list[str]()
        inside = asyncio.Event()

        async def pass_through() -> None:
            async with turnstile:
                await inside.wait()
                told.append("through")

        passing = asyncio.create_task(pass_through())
        await settle()
        closing = asyncio.create_task(turnstile.close())
        closing.add_done_callback(lambda _: told.append("closed"))
        await settle()
        inside.set()
        await asyncio.gather(passing, closing)
        return told

    assert run(drive()) == ["through", "closed"]


def test_a_meter_counts_time_in_which_anything_was_under_way_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("rollout.stages.time.perf_counter", lambda: clock[0])
    meter = Meter()
    first, second = meter.piece(), meter.piece()

    def at(now: float, act: Callable[[], Any]) -> None:
        clock[0] = now
        act()

    at(1, first.__enter__)
    at(2, second.__enter__)
    at(4, lambda: first.__exit__(None, None, None))
    meter.count(5)
    clock[0] = 6
    assert meter.take() == StageTime(5.0, 5)  # from 1 to 6
    at(7, lambda: second.__exit__(None, None, None))
    clock[0] = 9
    assert meter.take() == StageTime(1.0, 0)  # from 6 to 7


class PacedEngine(FakeEngine):
    """Draws one group after another, each in `seconds`; its samples are of the version that it held at the start."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds, self._turn = seconds, asyncio.Lock()

    async def sample(
        self, requests: Sequence[RolloutRequest], sampling: SamplingConfig, seed: int, base: bool = False
    ) -> list[Sample]:
        async with self._turn:
            version = self.version
            await asyncio.sleep(self.seconds)
        return [Sample(request, IDS, LOGPROBS, "stop", version, version) for request in requests]


class PooledEngines(Engines):
    """The pool decides which engine draws."""

    def __init__(self, engines: Sequence[PacedEngine]) -> None:
        super().__init__()
        self.pool = EnginePool(Scheduler(engines, 2))  # one group at a time

    async def sample(self, group: GroupRequests, student_version: int, begun: Callable[[], None]) -> list[Sample]:
        return await self.pool.sample(group.rows, SamplingConfig(1.0, 8), group.seed, begun=begun)


class ManyRequests(Requests):
    """`size` groups a step."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def of(self, step: int) -> tuple[list[GroupRequests], int]:
        return [group_of(step, slot) for slot in range(self.size)], 0


@pytest.mark.parametrize(
    ("order", "lag", "waits_s"), [("done", 1, 0), ("done", 3, 0), ("begun", 3, 0), ("begun", 1, 60)]
)
def test_one_engine_in_four_that_is_ten_times_slower_costs_its_share_and_no_more(
    order: str, lag: int, waits_s: float
) -> None:
    """waits_s: what steps wait for it beyond that, of some 200 s, where each group is learned from within the bound."""
    size, num_steps = 24, 24

    async def seconds(paces: Sequence[float]) -> float:
        engines = [PacedEngine(pace) for pace in paces]
        groups = PooledEngines(engines), ManyRequests(size)
        stream = RolloutStream(*groups, num_steps, lag, 1e6, order)  # type: ignore[arg-type]
        for step in range(num_steps):
            for engine in engines:
                engine.version = step
            stream.advance(step)
            taken = await stream.take(step)
            assert len(taken.groups) == size
        return asyncio.get_running_loop().time()

    slowed = run_virtual(seconds([1.0, 1.0, 1.0, 10.0]))
    print(f"{order}, lag {lag}: {slowed} s")
    most = run_virtual(seconds([1.0] * 4)) * 4 / 3.1 + 2 * 10  # and the last two groups that it has begun
    assert slowed <= most + waits_s
