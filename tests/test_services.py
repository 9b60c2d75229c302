"""Waiting for actors: every wait has a deadline, and says for whom."""

import asyncio
import time

import pytest

from cluster.services import all_within, within


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


def test_every_rank_answers_in_its_place() -> None:
    assert asyncio.run(all_within(5, "learner", [answer("a", 0.05), answer("b")])) == ["a", "b"]


@pytest.mark.parametrize(
    ("delays", "named"), [((0, 60, 0), "rank 1 of 3"), ((60, 60, 0), "rank 0, 1 of 3"), ((60,), "rank 0 of 1")]
)
def test_a_late_rank_is_named_and_not_waited_for(delays: tuple[float, ...], named: str) -> None:
    begun = time.monotonic()
    with pytest.raises(TimeoutError, match=rf"^learner at step 3: no answer from {named} within 0\.1 s$"):
        asyncio.run(all_within(0.1, "learner at step 3", [answer("a", delay) for delay in delays]))
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize("delay", [60, 0], ids=["one that waits for it", "one that is done"])
def test_a_rank_that_fails_ends_the_waiting(delay: float) -> None:
    begun = time.monotonic()
    with pytest.raises(RuntimeError, match="rank 1 died"):
        asyncio.run(all_within(60, "learner", [answer("a", delay), fail()]))
    assert time.monotonic() - begun < 30
