"""Several engines as one: what goes where, and that everything comes back in order."""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest

from cluster.fleet.engines import EngineClient
from cluster.fleet.scheduler import BATCHES, EnginePool, Lane, Scheduler, Work
from evidence.records import Ids, RolloutRequest, Sample
from rollout.config import SamplingConfig
from tests.fakes import FakeEngine, fake_logprobs
from tests.virtual_time import run_virtual

SAMPLING = SamplingConfig(1.0, 6)


def pool_of(engines: Sequence[EngineClient], max_num_seqs: int = 64) -> EnginePool:
    return EnginePool(Scheduler(engines, max_num_seqs))


def ids(*tokens: int) -> Ids:
    return np.array(tokens, np.int32)


def request(group: str, index: int) -> RolloutRequest:
    return RolloutRequest(f"{group}-{index}", group, group, index % 2 == 0, "system", ids(1, len(group)), ids(2))


def test_rows_of_one_prompt_are_scored_in_one_call_and_come_back_in_order() -> None:
    engines = [FakeEngine(), FakeEngine()]
    prompts = [ids(1, 2), ids(3), ids(1, 2), ids(4), ids(3)]
    responses = [ids(9, token) for token in range(5)]
    rows = asyncio.run(pool_of(engines).score(prompts, responses))
    for row, prompt, response in zip(rows, prompts, responses, strict=True):
        assert np.array_equal(row, fake_logprobs(prompt, response))
    calls = [[prompt.tolist() for prompt in asked] for engine in engines for asked, _ in engine.scored]
    assert sorted(calls) == [[[1, 2], [1, 2]], [[3], [3]], [[4]]]
    assert all(engine.scored for engine in engines)


def test_a_group_is_sampled_by_one_engine_with_the_seed_that_it_was_given() -> None:
    async def drive() -> list[list[Sample]]:
        pool = pool_of(engines)
        return await asyncio.gather(*(pool.sample(group, SAMPLING, seed) for seed, group in groups.items()))

    engines = [FakeEngine(version=1), FakeEngine(version=2)]
    groups = {70 + 3 * place: [request(name, index) for index in range(3)] for place, name in enumerate("abc")}
    for samples, group in zip(asyncio.run(drive()), groups.values(), strict=True):
        assert [sample.request.rollout_id for sample in samples] == [request.rollout_id for request in group]
        assert len({sample.policy_version_min for sample in samples}) == 1
    assert sorted(seed for engine in engines for _, _, seed in engine.sampled) == [70, 73, 76]
    assert all(engine.sampled for engine in engines)


class SlowEngine(FakeEngine):
    """Answers when it is told to; `fails` says how."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.fails, self.asked, self.go = fails, 0, asyncio.Event()

    async def score(self, prompts: list[Ids], responses: list[Ids], base: bool) -> list[Any]:
        self.asked += 1
        await self.go.wait()
        if self.fails:
            raise RuntimeError("engine died")
        return [np.zeros(len(response), np.float32) for response in responses]


def test_work_goes_to_the_engine_with_the_fewest_outstanding_tokens() -> None:
    async def drive() -> tuple[int, int]:
        busy, idle = SlowEngine(), SlowEngine()
        pool = pool_of([busy, idle])
        long = asyncio.create_task(pool.score([ids(*range(100))], [ids(1)]))
        await asyncio.sleep(0)
        short = [asyncio.create_task(pool.score([ids(token)], [ids(1)])) for token in range(5)]
        await asyncio.sleep(0.01)
        counts = busy.asked, idle.asked
        busy.go.set(), idle.go.set()
        await asyncio.gather(long, *short)
        return counts

    assert run_virtual(drive()) == (1, 5)


def test_a_failed_call_leaves_nothing_outstanding() -> None:
    async def drive() -> list[int]:
        broken = SlowEngine(fails=True)
        broken.go.set()
        scheduler = Scheduler([broken], 64)
        pool = EnginePool(scheduler)
        with pytest.raises(RuntimeError, match="engine died"):
            await pool.score([ids(1, 2, 3)], [ids(4)])
        (load,) = scheduler.loads
        return [load.tokens, load.sequences, scheduler.num_waiting]

    assert asyncio.run(drive()) == [0, 0, 0]


def test_what_does_not_fit_waits_in_turn_for_the_first_engine_with_room() -> None:
    """Engines that run one sequence at a time hold two; the fifth piece waits, and a piece that gives up is skipped."""

    async def drive() -> None:
        stuck, quick = SlowEngine(), SlowEngine()
        scheduler = Scheduler([stuck, quick], 1)
        pool = EnginePool(scheduler)
        tasks = [asyncio.create_task(pool.score([ids(token)], [ids(1)])) for token in range(8)]
        await asyncio.sleep(0.01)
        assert (stuck.asked, quick.asked, scheduler.num_waiting) == (2, 2, 4)
        tasks[4].cancel()
        quick.go.set()
        await asyncio.gather(*tasks[1:4:2], *tasks[5:])
        assert (stuck.asked, quick.asked, scheduler.num_waiting) == (2, 5, 0)
        stuck.go.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert [(load.tokens, load.sequences) for load in scheduler.loads] == [(0, 0)] * 2 and tasks[4].cancelled()

    run_virtual(drive())


class CountingEngine(FakeEngine):
    """Remembers how many sequences it ever held at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.most = 0

    async def _hold(self, sequences: int) -> None:
        self.held += sequences
        self.most = max(self.most, self.held)
        await asyncio.sleep(1)
        self.held -= sequences

    async def sample(self, requests: Sequence[RolloutRequest], *rest: Any) -> list[Sample]:
        await self._hold(len(requests))
        return await super().sample(requests, *rest)

    async def score(self, prompts: Sequence[Ids], responses: Sequence[Ids], base: bool = False) -> list[Any]:
        await self._hold(len(responses))
        return await super().score(prompts, responses)

    async def texts(self, prompts: Sequence[Ids], sampling: SamplingConfig, num: int, seed: int) -> list[list[str]]:
        await self._hold(num * len(prompts))
        return await super().texts(prompts, sampling, num, seed)


@pytest.mark.parametrize("who", ["a LoRA base", "a probe"])
def test_an_engine_holds_two_batches_whoever_asks(who: str) -> None:
    """A scheduler for each that asks, as the pools of a LoRA base and of the probe once had, lets it hold four."""

    async def most(schedulers: list[Scheduler], engine: CountingEngine) -> int:
        rollouts, other = EnginePool(schedulers[0]), EnginePool(schedulers[-1], base=True)
        work: list[Any] = [rollouts.sample([request(f"g{n}", i) for i in range(4)], SAMPLING, n) for n in range(20)]
        if who == "a probe":
            work.append(other.texts([ids(1, n) for n in range(20)], SAMPLING, 4, 0))
        else:
            work += [other.score([ids(1, n)] * 4, [ids(2)] * 4) for n in range(20)]
        await asyncio.gather(*work)
        return engine.most

    size = 8
    engine = CountingEngine()
    assert run_virtual(most([Scheduler([engine], size)], engine)) == BATCHES * size
    apart = CountingEngine()
    assert run_virtual(most([Scheduler([apart], size), Scheduler([apart], size)], apart)) == 2 * BATCHES * size


def test_scores_go_before_probes_and_probes_before_samples() -> None:
    order: list[str] = []

    async def drive() -> None:
        scheduler = Scheduler([FakeEngine()], 1)

        async def piece(lane: Lane, name: str) -> None:
            async def call(engine: EngineClient) -> None:
                order.append(name)
                await asyncio.sleep(1)

            await scheduler.run(lane, Work(2, 1), call)

        running = asyncio.create_task(piece(Lane.SAMPLE, "running"))
        await asyncio.sleep(0)
        lanes = (Lane.SAMPLE, Lane.PROBE, Lane.SCORE, Lane.SAMPLE, Lane.SCORE)
        await asyncio.gather(running, *(piece(lane, f"{lane.name} {n}") for n, lane in enumerate(lanes)))

    run_virtual(drive())
    assert order == ["running", "SCORE 2", "SCORE 4", "PROBE 1", "SAMPLE 0", "SAMPLE 3"]


def test_where_all_ends_what_is_under_way_ends_with_it() -> None:
    """Its engine may be one that never answers; nothing stays outstanding."""

    async def drive() -> None:
        stuck = SlowEngine()
        scheduler = Scheduler([stuck], 1)
        pool = EnginePool(scheduler)
        tasks = [asyncio.create_task(pool.score([ids(token)], [ids(1)])) for token in range(4)]
        await asyncio.sleep(0.01)
        assert stuck.asked == 2 and scheduler.num_waiting == 2
        scheduler.fail(RuntimeError("after 3 restarts"))
        found = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
        assert [str(error) for error in found] == ["after 3 restarts"] * 4
        (load,) = scheduler.loads
        assert (load.sequences, load.tokens, scheduler.num_waiting) == (0, 0, 0)

    run_virtual(drive())


def test_what_a_lost_engine_had_begun_begins_again_in_the_same_order() -> None:
    async def drive() -> list[int]:
        lost, other = FakeEngine(), FakeEngine()
        scheduler, begun = Scheduler([lost], 8), list[int]()

        async def call(number: int, engine: EngineClient) -> None:
            if engine is lost:
                await asyncio.Event().wait()
            begun.append(number)

        work = [
            asyncio.create_task(scheduler.run(Lane.SAMPLE, Work(1, 1), partial(call, number))) for number in range(16)
        ]
        await asyncio.sleep(1.0)
        scheduler.lose(lost)
        scheduler.open(other)
        await asyncio.gather(*work)
        return begun

    assert run_virtual(drive()) == [*range(16)]
