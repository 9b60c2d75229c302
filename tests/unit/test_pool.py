"""Several engines as one: what goes where, and that everything comes back in order."""

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cluster.fleet.scheduler import EnginePool
from evidence.records import Ids, RolloutRequest, Sample
from rollout.config import SamplingConfig
from tests.fakes import FakeEngine, fake_logprobs

SAMPLING = SamplingConfig(1.0, 6)


def handle(engine: Any) -> Any:
    """`engine` as Ray shows an actor: method.remote(...) gives something to await, which takes a while."""

    def remote(method: Any) -> Any:
        async def call(*arguments: Any) -> Any:
            await asyncio.sleep(0)
            return await method(*arguments)

        return SimpleNamespace(remote=call)

    return SimpleNamespace(sample=remote(engine.sample), score=remote(engine.score))


def ids(*tokens: int) -> Ids:
    return np.array(tokens, np.int32)


def request(group: str, index: int) -> RolloutRequest:
    return RolloutRequest(f"{group}-{index}", group, group, index % 2 == 0, "system", ids(1, len(group)), ids(2))


def test_rows_of_one_prompt_are_scored_in_one_call_and_come_back_in_order() -> None:
    engines = [FakeEngine(), FakeEngine()]
    prompts = [ids(1, 2), ids(3), ids(1, 2), ids(4), ids(3)]
    responses = [ids(9, token) for token in range(5)]
    rows = asyncio.run(EnginePool([handle(engine) for engine in engines], 64).score(prompts, responses))
    for row, prompt, response in zip(rows, prompts, responses, strict=True):
        assert np.array_equal(row, fake_logprobs(prompt, response))
    calls = [[prompt.tolist() for prompt in asked] for engine in engines for asked, _ in engine.scored]
    assert sorted(calls) == [[[1, 2], [1, 2]], [[3], [3]], [[4]]]
    assert all(engine.scored for engine in engines)


def test_a_group_is_sampled_by_one_engine_with_the_seed_that_it_was_given() -> None:
    async def drive() -> list[list[Sample]]:
        pool = EnginePool([handle(engine) for engine in engines], 64)
        return await asyncio.gather(*(pool.sample(group, SAMPLING, seed) for seed, group in groups.items()))

    engines = [FakeEngine(version=1), FakeEngine(version=2)]
    groups = {70 + 3 * place: [request(name, index) for index in range(3)] for place, name in enumerate("abc")}
    for samples, group in zip(asyncio.run(drive()), groups.values(), strict=True):
        assert [sample.request.rollout_id for sample in samples] == [request.rollout_id for request in group]
        assert len({sample.policy_version_min for sample in samples}) == 1
    assert sorted(seed for engine in engines for _, _, seed in engine.sampled) == [70, 73, 76]
    assert all(engine.sampled for engine in engines)


class SlowEngine:
    """Answers when it is told to; `fails` says how."""

    def __init__(self, fails: bool = False) -> None:
        self.fails, self.asked, self.go = fails, 0, asyncio.Event()

    async def score(self, prompts: list[Ids], responses: list[Ids]) -> list[Any]:
        self.asked += 1
        await self.go.wait()
        if self.fails:
            raise RuntimeError("engine died")
        return [np.zeros(len(response), np.float32) for response in responses]

    sample = score


def test_work_goes_to_the_engine_with_the_fewest_outstanding_tokens() -> None:
    async def drive() -> tuple[int, int]:
        busy, idle = SlowEngine(), SlowEngine()
        pool = EnginePool([handle(busy), handle(idle)], 64)
        long = asyncio.create_task(pool.score([ids(*range(100))], [ids(1)]))
        await asyncio.sleep(0)
        short = [asyncio.create_task(pool.score([ids(token)], [ids(1)])) for token in range(5)]
        await asyncio.sleep(0.01)
        counts = busy.asked, idle.asked
        busy.go.set(), idle.go.set()
        await asyncio.gather(long, *short)
        return counts

    assert asyncio.run(drive()) == (1, 5)


def test_a_failed_call_leaves_nothing_outstanding() -> None:
    async def drive() -> list[int]:
        broken = SlowEngine(fails=True)
        broken.go.set()
        pool = EnginePool([handle(broken)], 64)
        with pytest.raises(RuntimeError, match="engine died"):
            await pool.score([ids(1, 2, 3)], [ids(4)])
        return pool._tokens + pool._sequences

    assert asyncio.run(drive()) == [0, 0]


def test_what_does_not_fit_waits_in_turn_for_the_first_engine_with_room() -> None:
    """Engines that run one sequence at a time hold two; the fifth piece waits, and a piece that gives up is skipped."""

    async def drive() -> None:
        stuck, quick = SlowEngine(), SlowEngine()
        pool = EnginePool([handle(stuck), handle(quick)], 1)
        tasks = [asyncio.create_task(pool.score([ids(token)], [ids(1)])) for token in range(8)]
        await asyncio.sleep(0.01)
        assert (stuck.asked, quick.asked, len(pool._waiting)) == (2, 2, 4)
        tasks[4].cancel()
        quick.go.set()
        await asyncio.gather(*tasks[1:4:2], *tasks[5:])
        assert (stuck.asked, quick.asked, len(pool._waiting)) == (2, 5, 0)
        stuck.go.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert pool._tokens == pool._sequences == [0, 0] and tasks[4].cancelled()

    asyncio.run(drive())
