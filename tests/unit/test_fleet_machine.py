"""The fleet under any order of work, pushes, deaths, hangs and losses of weights, on a clock of its own: whatever is
asked for is done once, by an engine that holds the weights it is to hold, or all of it ends with one error."""

import asyncio
import itertools
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from ray.exceptions import RayTaskError

from cluster.faults import FaultsConfig
from cluster.fleet.calls import Died
from cluster.fleet.canary import CanaryText
from cluster.fleet.fleet import Fleet
from cluster.fleet.roster import Roster
from cluster.fleet.scheduler import EnginePool
from evidence.records import Floats, Ids, RolloutRequest, Sample
from evidence.telemetry import Activity
from rollout.config import EngineConfig, SamplingConfig
from rollout.waits import Deadlines
from tests.fakes import FakeEngine, fake_logprobs
from tests.virtual_time import VirtualTimeLoop, run_virtual

FAULTS = FaultsConfig(max_restarts=3, restart_window_s=3000.0, silent_s=30.0)
CONFIGS = {"student": EngineConfig(max_num_seqs=2), "teacher": EngineConfig(max_num_seqs=2)}
SIZES = {"student": 2, "teacher": 1}
DEADLINE_S = 20.0
PROMPT, RESPONSE = np.arange(3, dtype=np.int32), np.arange(2, dtype=np.int32)
KINDS = st.sampled_from(["died", "hung", "stuck"])


class Mortal(FakeEngine):
    """An engine that takes its time, and dies or hangs amid whatever it does, or gets stuck in it and still answers."""

    def __init__(self, pool: str, place: int, model: str) -> None:
        super().__init__(version=-1, model=model, name=f"{pool} engine {place}")
        self.fault, self.tokens = "", 0.0
        self._faulted = asyncio.Event()

    def suffer(self, fault: str) -> None:
        self.fault = self.fault or fault
        self._faulted.set()

    async def _work(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._faulted.wait()
        except TimeoutError:
            self.tokens += 1
            return
        if self.fault == "died":
            raise Died(f"{self.name} died: SIGKILL")
        await asyncio.Event().wait()

    async def start(self) -> str:
        await self._work(5.0)
        return "here"

    async def ping(self) -> None:
        if self.fault != "stuck":
            await self._work(0.1)
        self.tokens -= self.fault != "stuck"  # which is no work

    async def stats(self) -> dict[str, float]:
        return {"generated_tokens": self.tokens}

    async def sample(
        self, requests: Sequence[RolloutRequest], sampling: SamplingConfig, seed: int, base: bool = False
    ) -> list[Sample]:
        await self._work(3.0)
        return await super().sample(requests, sampling, seed)

    async def score(self, prompts: Sequence[Ids], responses: Sequence[Ids], base: bool = False) -> list[Floats]:
        await self._work(2.0)
        return await super().score(prompts, responses)

    async def tell(self, verb: str, *arguments: Any) -> None:
        await self._work(1.0)
        if verb == "update_weights":
            self.digest = arguments[0]
        if verb == "update_weight_version":
            self.version = arguments[0]

    async def weight_state(self) -> tuple[int, str]:
        await self._work(0.1)
        return self.version, self.digest


class FleetMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner(loop_factory=VirtualTimeLoop)
        self.made: list[Mortal] = []
        self.blank = False  # whether the next teacher comes up without its weights
        self.version = 0
        self.work: list[asyncio.Task[Any]] = []
        self.failure: Exception | None = None
        self.run(self.begin())

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    def make(self, pool: str, place: int) -> Mortal:
        is_blank, self.blank = self.blank and pool == "teacher", self.blank and pool != "teacher"
        engine = Mortal(pool, place, "blank" if is_blank else pool)
        self.made.append(engine)
        return engine

    async def begin(self) -> None:
        makers = {pool: [partial(self.make, pool, place) for place in range(size)] for pool, size in SIZES.items()}
        self.fleet = Fleet(makers, CONFIGS, FAULTS)
        self.roster = self.fleet.roster
        text = CanaryText(PROMPT, RESPONSE, fake_logprobs(PROMPT, RESPONSE, "teacher"))
        self.roster.reference = text, 0.1
        await self.roster.start()
        await self.push()

    def serving(self, pool: str) -> list[Any]:
        return [load.engine for load in self.roster.schedulers[pool].loads]

    async def push(self) -> None:
        """As the driver and the learner do together."""
        digest = f"weights {self.version}"
        text = CanaryText(PROMPT, RESPONSE, fake_logprobs(PROMPT, RESPONSE, "student"))
        while True:
            await self.roster.enlist("student")
            verbs = {"start_weight_update": (), "update_weights": (digest,), "finish_weight_update": ()}
            for verb, arguments in {**verbs, "update_weight_version": (self.version,)}.items():
                await self.fleet.tell("student", verb, arguments, DEADLINE_S)
            await self.fleet.prove_weights("student", self.version, digest, DEADLINE_S)
            assert max((await self.fleet.canary("student", self.version, text, DEADLINE_S)).values(), default=0) < 0.1
            if self.roster.admit("student"):
                return

    async def guarded(self, work: Coroutine[Any, Any, Any]) -> None:
        try:
            await work
        except (RuntimeError, TimeoutError) as error:
            assert self.failure is None or error is self.failure
            self.failure = error

    @rule(pool=st.sampled_from(["student", "teacher"]), seed=st.integers(0, 9))
    def ask(self, pool: str, seed: int) -> None:
        if pool == "student":
            request = RolloutRequest(f"r{seed}", "p", "g", True, "system", PROMPT, PROMPT)
            work: Any = self.fleet.pool(pool).sample([request, request], SamplingConfig(1.0, 4), seed)
        else:
            work = self.fleet.pool(pool).score([PROMPT], [RESPONSE + seed])

        async def begin() -> None:
            self.work.append(asyncio.create_task(self.checked(pool, work)))

        self.run(begin())

    async def checked(self, pool: str, work: Any) -> None:
        for row in await work:
            if pool == "student":
                assert row.policy_version_min >= 0, "sampled by an engine without weights"
            else:
                assert any(np.array_equal(row, fake_logprobs(PROMPT, RESPONSE + seed, pool)) for seed in range(10))

    @precondition(lambda self: self.failure is None)
    @rule(fault=st.none() | KINDS, which=st.integers(0, 9), after_s=st.floats(0, 8), new=st.booleans())
    def push_amid_a_fault(self, fault: str | None, which: int, after_s: float, new: bool) -> None:
        self.version += new

        async def act() -> None:
            pushing = asyncio.create_task(self.guarded(self.push()))
            await asyncio.sleep(after_s)
            if fault is not None:
                self.living()[which % len(self.living())].suffer(fault)
            await pushing

        self.run(act())

    def living(self) -> list[Any]:
        return [seat.engine for seat in self.roster.everyone()]

    @rule(fault=KINDS, which=st.lists(st.integers(0, 9), min_size=1, max_size=3))
    def suffer(self, fault: str, which: list[int]) -> None:
        """Several at once, and all of a pool."""

        async def act() -> None:
            for number in which:
                self.living()[number % len(self.living())].suffer(fault)

        self.run(act())

    @rule()
    def the_next_teacher_loses_its_weights(self) -> None:
        self.blank = True

    @rule(fault=st.none() | KINDS, which=st.integers(0, 9))
    def sleep_and_wake(self, fault: str | None, which: int) -> None:
        async def act() -> None:
            before = len(self.made)
            await self.guarded(self.fleet.sleep(DEADLINE_S))
            slept = len(self.made)
            still = [seat.name for seat in self.roster._starting if not seat.is_lost]
            assert not still or self.failure is not None, f"{still} start while the learner has the memory"
            if fault is not None:
                self.living()[which % len(self.living())].suffer(fault)
            await asyncio.sleep(100.0)
            assert len(self.made) == slept or before < slept, "an engine was built while the learner had the memory"
            await self.guarded(self.fleet.wake_up(DEADLINE_S))

        self.run(act())

    @rule(seconds=st.floats(0, 60))
    def time_passes(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    @invariant()
    def who_serves_holds_the_newest_weights(self) -> None:
        if self.failure is not None or self.roster._failure is not None:
            return
        for engine in self.serving("student"):
            assert (engine.version, engine.digest) == (self.version, f"weights {self.version}")
        assert all(engine.model == "teacher" for engine in self.serving("teacher"))
        for pool, size in SIZES.items():
            assert len(self.serving(pool)) <= size

    def teardown(self) -> None:
        async def settle() -> None:
            """Time for whatever was lost to come back, and for the driver to hear of it."""
            for _ in range(12):
                await asyncio.sleep(100.0)
                if self.failure is None and self.roster._failure is None:
                    await self.guarded(self.push())

        self.run(settle())
        failure = self.roster._failure
        for task in self.work:
            assert task.done(), "work that nobody does"
            assert task.exception() in (None, failure)
        if failure is not None:
            assert "after 3 restarts within 3000 s" in str(failure)
        else:
            assert {pool: len(self.serving(pool)) for pool in SIZES} == SIZES
        assert sum(len(self.serving(pool)) for pool in SIZES) <= sum(SIZES.values())
        self.run(self.fleet.stop())
        assert all(("kill",) in engine.told for engine in self.made)
        self.runner.close()


async def stand_still(fault: str, seconds: float) -> tuple[str, float]:
    """What is said of the only engine, and when, once it has work and this fault."""
    engines: list[Mortal] = []

    def make(place: int) -> Mortal:
        engines.append(Mortal("student", place, "student"))
        return engines[-1]

    roster = Roster({"student": [partial(make, 0)]}, CONFIGS, FAULTS, (), False, Activity(), Deadlines())
    await roster.start()
    roster.admit("student") or roster._admit(roster.seats["student"][0])
    request, clock = RolloutRequest("r", "p", "g", True, "system", PROMPT, PROMPT), asyncio.get_running_loop().time
    pool = EnginePool(roster.schedulers["student"])
    await asyncio.sleep(200.0)  # without work it stands still for as long as it likes
    begun = clock()
    if fault:
        engines[0].suffer(fault)
    asked = [asyncio.create_task(pool.sample([request], SamplingConfig(1.0, 4), seed)) for seed in range(30)]
    news = await roster.news(seconds, 0, {})
    after = clock() - begun
    await asyncio.wait(asked, timeout=300.0)
    assert all(task.done() for task in asked)
    roster.stop()
    return "".join(news.lines), after


@pytest.mark.parametrize("after_s", [0.0, 1.0, 1.9, 7.3])
def test_an_engine_without_work_that_dies_is_named_within_10_s(after_s: float) -> None:
    async def act() -> tuple[str, float]:
        engine = Mortal("student", 0, "student")
        roster = Roster({"student": [lambda: engine]}, CONFIGS, FAULTS, (), False, Activity(), Deadlines())
        await roster.start()
        await asyncio.sleep(after_s)
        engine.suffer("died")
        begun = asyncio.get_running_loop().time()
        news = await roster.news(60.0, 0, {})
        took = asyncio.get_running_loop().time() - begun
        roster.stop()
        return "".join(news.lines), took

    said, took = run_virtual(act())
    assert said == "student engine 0 died: SIGKILL; it is replaced" and took <= 10.0


def test_an_engine_that_answers_and_gets_no_further_is_named_and_replaced() -> None:
    said, after = run_virtual(stand_still("stuck", 500.0))
    assert said == "student engine 0: no token of 4 sequences within 30 s; it is replaced" and after < 40


def test_an_engine_that_gets_on_is_left_alone_however_long_its_work() -> None:
    assert run_virtual(stand_still("", 60.0))[0] == ""


class Roused(Mortal):
    """An engine that notes when it starts."""

    def __init__(self, spans: list[tuple[float, float]], place: int) -> None:
        super().__init__("student", place, "student")
        self._spans = spans

    async def start(self) -> str:
        begun = asyncio.get_running_loop().time()
        host = await super().start()
        self._spans.append((begun, asyncio.get_running_loop().time()))
        return host


@pytest.mark.parametrize("asleep", [False, True])
@pytest.mark.parametrize("in_turn", [False, True])
def test_successors_start_in_turn_where_engines_do(in_turn: bool, asleep: bool) -> None:
    """All of three are lost at once, also while the learner has the memory, and one of them again amid its start."""
    spans: list[tuple[float, float]] = []

    async def drive() -> None:
        makers = {"student": [partial(Roused, spans, place) for place in range(3)]}
        roster = Roster(makers, CONFIGS, FAULTS, ("student",), in_turn, Activity(), Deadlines())
        await roster.start()
        if asleep:
            await roster.fall_asleep(1.0)
        for seat in roster.everyone():
            roster.lose(seat, seat.engine, Died(f"{seat.name} died: SIGKILL"))
        await asyncio.sleep(3.0)
        roster.wake_up()
        await asyncio.sleep(1.0)
        hung = next(seat for seat in roster.everyone() if seat in roster._starting)
        hung.engine.suffer("hung")  # type: ignore[attr-defined]
        roster.lose(hung, hung.engine, Died(f"{hung.name} died: SIGKILL"))
        await asyncio.sleep(60.0)
        assert all(seat.stands for seat in roster.everyone())
        roster.stop()

    run_virtual(drive())
    ordered = sorted(spans)
    overlaps = any(end > begin for (_, end), (begin, _) in itertools.pairwise(ordered))
    assert len(spans) == 6 and overlaps is not in_turn


def roster_of(*engines: Mortal) -> Roster:
    """Of one student engine and its successors."""
    left = list(engines)
    return Roster({"student": [lambda: left.pop(0)]}, CONFIGS, FAULTS, ("student",), False, Activity(), Deadlines())


def test_an_engine_that_is_lost_as_its_start_ends_does_not_stand() -> None:
    async def drive() -> None:
        loop = asyncio.get_running_loop()

        class Late(Mortal):
            async def start(self) -> str:
                host = await super().start()
                loop.call_soon(
                    roster.lose, roster.seats["student"][0], self, TimeoutError("the learner needs its memory")
                )
                return host

        roster = roster_of(Mortal("student", 0, ""), Late("student", 0, ""), last := Mortal("student", 0, ""))
        await roster.start()
        (seat,) = roster.everyone()
        roster.lose(seat, seat.engine, Died("student engine 0 died: SIGKILL"))
        await asyncio.sleep(7.0)
        assert seat.engine is last and not seat.stands
        await asyncio.sleep(5.0)
        assert seat.stands
        roster.stop()

    run_virtual(drive())


@pytest.mark.parametrize("error", [
    RuntimeError("no such file"), RayTaskError("ping", "traceback", KeyError("core")).as_instanceof_cause(),
], ids=["error", "of another kind"])  # fmt: skip
def test_an_engine_whose_answer_to_the_watch_is_an_error_is_replaced(error: Exception) -> None:
    class Failing(Mortal):
        async def ping(self) -> None:
            raise error

    async def drive() -> None:
        roster = roster_of(Failing("student", 0, ""), successor := Mortal("student", 0, ""))
        await roster.start()
        await asyncio.sleep(20.0)
        roster.require_hope()
        (seat,) = roster.everyone()
        assert seat.has(successor) and seat.stands
        roster.stop()

    run_virtual(drive())


TestFleet = FleetMachine.TestCase
TestFleet.settings = settings(max_examples=20, stateful_step_count=15)
