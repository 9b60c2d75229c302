"""Rollouts of very unequal length, in virtual time: what is learned from, and what that costs, in either order of
groups."""

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from evidence.advantage import Rewards
from evidence.records import RolloutRequest, Sample, ScoredSample
from rollout.requests import GroupRequests
from rollout.stream import RolloutStream
from rollout.worker import Group
from tests.virtual_time import run_virtual

LONGEST = 20.0  # times the median: the limit on a response's tokens
IDS, LOGPROBS = np.array([1], np.int32), np.zeros(1, np.float32)


@dataclass(frozen=True)
class Tail:
    """A run of `steps` steps of `groups` groups of one rollout, on engines with room for `slots` at once. A rollout's
    seconds are log-normal with median 1 and `LONGEST` at most. The learner is as fast as the engines where these are
    full and nothing is thrown away."""

    lag: int
    order: str
    sigma: float = 1.0
    slots: int = 8
    groups: int = 16
    steps: int = 60
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    """Seconds of the rollouts that were sampled and of those that were learned from; the engines' time in which they
    sampled what is learned from, as a share of all; rollouts that were discarded."""

    sampled: Sequence[float]
    learned: Sequence[float]
    useful: float
    dropped: int


class _Roller:
    """Also the requests: a group is of one rollout."""

    def __init__(self, tail: Tail) -> None:
        self.tail, self.version = tail, 0
        self._room, self._draw = asyncio.Semaphore(tail.slots), random.Random(tail.seed)
        self.sampled: list[float] = []
        self.seconds: dict[str, float] = {}  # by group, of the newest attempt

    def of(self, step: int) -> tuple[list[GroupRequests], int]:
        names = [f"{step:06d}-{slot:03d}" for slot in range(self.tail.groups)]
        rows = [RolloutRequest(f"{name}-0", name, name, False, "system", IDS, IDS) for name in names]
        return [GroupRequests(step * self.tail.groups + place, 0, (row,), (2,)) for place, row in enumerate(rows)], 0

    async def sample(self, group: GroupRequests, student_version: int, begun: Callable[[], None]) -> list[Sample]:
        async with self._room:
            begun()
            version = self.version
            seconds = min(self._draw.lognormvariate(0.0, self.tail.sigma), LONGEST)
            self.sampled.append(seconds)
            self.seconds[group.name] = seconds
            await asyncio.sleep(seconds)
        return [Sample(row, IDS, LOGPROBS, "stop", version, version) for row in group.rows]

    async def verify(self, samples: Sequence[Sample]) -> Rewards:
        return (None,) * len(samples)

    async def score(
        self, group: GroupRequests, samples: Sequence[Sample], rewards: Rewards, teacher_version: int
    ) -> Group:
        return Group(group, tuple(ScoredSample(one, LOGPROBS, LOGPROBS, teacher_version) for one in samples), rewards)


def outcome(tail: Tail) -> Outcome:
    """What the run comes to."""
    return run_virtual(_run(tail))


async def _run(tail: Tail) -> Outcome:
    roller, learned, dropped = _Roller(tail), list[float](), 0
    stream = RolloutStream(roller, roller, tail.steps, tail.lag, 1e9, tail.order)  # type: ignore[arg-type]
    learning_s = tail.groups / tail.slots * float(np.exp(tail.sigma**2 / 2))
    for step in range(tail.steps):
        roller.version = step
        stream.advance(step)
        taken = await stream.take(step)
        learned += [roller.seconds[group.requests.name] for group in taken.groups]
        dropped += taken.dropped
        await asyncio.sleep(learning_s)
    wall_s = asyncio.get_running_loop().time()
    return Outcome(roller.sampled, learned, sum(learned) / (wall_s * tail.slots), dropped)
