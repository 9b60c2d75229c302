"""The rollout stream under any order in which engines finish, weights move and teachers change."""

import asyncio
from collections.abc import Callable, Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cluster.config import GROUP_ORDERS
from evidence.advantage import Rewards
from evidence.records import Sample, ScoredSample
from rollout.requests import GroupRequests
from rollout.stream import RolloutStream
from rollout.worker import Group, Taken
from tests.unit.test_stream import IDS, LOGPROBS, Requests
from tests.virtual_time import VirtualTimeLoop

END = 4  # steps


class Gated:
    """Samples and scores a group when the machine lets it."""

    def __init__(self) -> None:
        self.waiting: list[tuple[GroupRequests, asyncio.Event]] = []
        self.sampling: list[tuple[GroupRequests, asyncio.Event]] = []
        self.scoring: list[tuple[GroupRequests, asyncio.Event]] = []
        self.begun: list[tuple[str, int]] = []
        self.version = 0
        self.is_paused, self.teacher_version, self.failing = False, 0, False

    @property
    def under_way(self) -> list[tuple[GroupRequests, asyncio.Event]]:
        """The furthest first."""
        return self.scoring + self.sampling + self.waiting

    async def sample(self, group: GroupRequests, student_version: int, begun: Callable[[], None]) -> list[Sample]:
        taken, gate = (group, asyncio.Event()), (group, asyncio.Event())
        self.begun.append((group.name, group.seed))
        self.waiting.append(taken)
        await taken[1].wait()
        self.waiting.remove(taken)
        begun()
        version = self.version
        self.sampling.append(gate)
        await gate[1].wait()
        self.sampling.remove(gate)
        if self.failing:
            raise RuntimeError("engine died")
        return [Sample(row, IDS, LOGPROBS, "stop", version, version) for row in group.rows]

    async def verify(self, samples: Sequence[Sample]) -> Rewards:
        return (None,) * len(samples)

    async def score(
        self, group: GroupRequests, samples: Sequence[Sample], rewards: Rewards, teacher_version: int
    ) -> Group:
        assert not self.is_paused and teacher_version == self.teacher_version
        gate = (group, asyncio.Event())
        self.scoring.append(gate)
        await gate[1].wait()
        self.scoring.remove(gate)
        assert not self.is_paused and teacher_version == self.teacher_version, "two teachers scored one rollout"
        scored = tuple(ScoredSample(sample, LOGPROBS, LOGPROBS, teacher_version) for sample in samples)
        return Group(group, scored, rewards)


class StreamMachine(RuleBasedStateMachine):
    @initialize(lag=st.integers(0, 3), refused=st.integers(0, 2), order=st.sampled_from(GROUP_ORDERS))
    def start(self, lag: int, refused: int, order: str) -> None:
        self.runner = asyncio.Runner(loop_factory=VirtualTimeLoop)
        self.lag, self.engines, self.requests = lag, Gated(), Requests(step1=refused)
        self.order = order
        self.stream = RolloutStream(self.engines, self.requests, END, lag, 1e9, order)  # type: ignore[arg-type]
        self.step, self.taken, self.dropped = 0, list[str](), 0
        self.taking: asyncio.Task[Taken] | None = None
        self.pausing: asyncio.Task[None] | None = None
        self.has_failed = False

        async def first() -> None:
            self.stream.advance(0)

        self.runner.run(first())
        self.turn()

    def turn(self) -> None:
        async def pause() -> None:
            for _ in range(12):
                await asyncio.sleep(0)
                if self.pausing is not None and self.pausing.done():
                    self.engines.is_paused = True

        self.runner.run(pause())

    @precondition(lambda self: self.engines.waiting)
    @rule(count=st.integers(1, 4))
    def engines_take_what_waits(self, count: int) -> None:
        for gate in self.engines.waiting[:count]:
            gate[1].set()
        self.turn()

    @precondition(lambda self: self.engines.sampling)
    @rule(data=st.data())
    def an_engine_has_sampled(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.engines.sampling))[1].set()
        self.turn()

    @precondition(lambda self: self.engines.scoring)
    @rule(data=st.data())
    def an_engine_has_scored(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.engines.scoring))[1].set()
        self.turn()

    @precondition(lambda self: self.taking is None and self.step < END)
    @rule()
    def the_learner_asks(self) -> None:
        async def ask() -> None:
            self.taking = asyncio.create_task(self.stream.take(self.step))

        self.runner.run(ask())
        self.turn()

    @precondition(lambda self: self.taking is not None and self.taking.done() and not self.has_failed)
    @rule()
    def the_learner_has_learned(self) -> None:
        assert self.taking is not None
        self.check(self.taking.result())
        self.taking, self.step = None, self.step + 1

        async def push() -> None:
            self.engines.version = self.step
            self.stream.advance(self.step)

        self.runner.run(push())
        self.turn()

    def check(self, taken: Taken) -> None:
        groups, refused = self.requests.of(self.step)
        assert len(taken.groups) == len(groups) and taken.refused == refused
        places = [group.requests.place for group in taken.groups]
        assert places == sorted(places)
        assert all(self.step - self.lag <= group.version_min <= self.step for group in taken.groups)
        self.taken += [group.requests.name for group in taken.groups]
        self.dropped += taken.dropped
        assert taken.dropped == 0 or self.order == "done"

    @precondition(lambda self: self.taking is None and self.step < END and self.pausing is None and not self.has_failed)
    @rule()
    def a_step_passes_beside_the_slowest_group(self) -> None:
        """The group that was begun first is left where it is: in the end it is too old, or waited for."""
        self.the_learner_asks()
        slow = self.engines.sampling[:1]
        while self.taking is not None and not self.taking.done():
            others = [gate for gate in self.engines.under_way if gate not in slow]
            if not others:
                return
            others[0][1].set()
            self.turn()
        self.the_learner_has_learned()

    @precondition(lambda self: self.pausing is None)
    @rule()
    def every_engine_is_done(self) -> None:
        while gates := self.engines.under_way:
            gates[0][1].set()
            self.turn()

    @precondition(lambda self: self.pausing is None)
    @rule()
    def the_teacher_is_to_change(self) -> None:
        async def pause() -> None:
            self.pausing = asyncio.create_task(self.stream.pause_scoring())

        self.runner.run(pause())
        self.turn()

    @precondition(lambda self: self.engines.is_paused)
    @rule()
    def the_teacher_has_changed(self) -> None:
        assert not self.engines.scoring
        self.engines.is_paused, self.pausing = False, None
        self.engines.teacher_version += 1
        self.runner.run(self.stream.resume_scoring(self.engines.teacher_version))
        self.turn()

    @precondition(lambda self: self.engines.sampling and self.step < END)
    @rule()
    def an_engine_dies(self) -> None:
        if not self.has_failed:
            self.was_whole = self.taking is not None and self.taking.done()
        self.engines.failing = self.has_failed = True
        self.engines.sampling[0][1].set()
        self.turn()

    @invariant()
    def nothing_is_under_way_beyond_the_bound(self) -> None:
        steps = [int(name.split("-")[0]) for name, _ in self.engines.begun]
        assert max(steps) <= min(self.step + self.lag, END - 1)
        assert len(set(self.engines.begun)) == len(self.engines.begun), "drawn twice with one seed"
        assert len(set(self.taken)) == len(self.taken), "a group was learned from twice"

    def teardown(self) -> None:
        """What is left is let through; every prompt is learned from once, unless an engine died: then that is said."""
        if not hasattr(self, "engines"):
            return
        if self.engines.is_paused or self.pausing is not None:
            self.finish_scoring()
            self.the_teacher_has_changed()
        while self.step < END and not self.has_failed:
            if self.taking is None:
                self.the_learner_asks()
            self.let_through()
            self.the_learner_has_learned()
        if self.has_failed and self.step < END:
            self.assert_failed()
        else:
            expected = [group.name for step in range(END) for group in self.requests.of(step)[0]]
            assert sorted(self.taken) == expected
            self.nothing_is_under_way_beyond_the_bound()
            assert 2 * len(self.engines.begun) == 2 * len(expected) + self.dropped  # two rollouts a group
        self.runner.close()

    def finish_scoring(self) -> None:
        while self.engines.scoring:
            self.engines.scoring[0][1].set()
            self.turn()

    def let_through(self) -> None:
        while self.taking is not None and not self.taking.done():
            self.engines.under_way[0][1].set()
            self.turn()

    def assert_failed(self) -> None:
        if self.taking is None:
            self.the_learner_asks()
        assert self.taking is not None and self.taking.done()
        if self.was_whole:
            self.check(self.taking.result())
            return
        with pytest.raises(RuntimeError, match="engine died"):
            self.taking.result()


TestStream = StreamMachine.TestCase
TestStream.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
