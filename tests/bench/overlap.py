"""Whether the two services work side by side: the real stream over stages of known length on separate resources.

    python -m tests.bench.overlap [--steps 12]

A student engine, a teacher engine and a learner that each take one thing at a time and sleep. With a bound of 1 a step
should take no longer than the slower service, with a bound of 0 as long as its stages together.
"""

import argparse
import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from cluster.config import Recipe, load_recipe
from cluster.default_model import prepare_default_model
from cluster.requests import step_requests
from evidence.records import EvidenceRecord, Floats, Ids, RolloutRequest, Sample, ShardInfo
from rollout.config import SamplingConfig
from rollout.requests import StepRequests
from rollout.stream import RolloutStream
from rollout.worker import RolloutWorker
from tests.bench.figures import Figure

RECIPE = Path(__file__).parents[2] / "cluster" / "recipes" / "N3.toml"
GROUPS = 4
SECONDS = ((1.0, 1.0), (1.0, 0.6), (0.6, 1.0))  # sampling one step, learning from one


class Turns:
    """A resource that does one thing at a time, each as long as it is told."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def work(self, seconds: float) -> None:
        async with self._turn:
            await asyncio.sleep(seconds)


class StandIn:
    """Student and teacher engines; scoring one group takes a quarter of the time of sampling it."""

    def __init__(self, group_s: float) -> None:
        self._student, self._teacher, self._group_s, self.version = Turns(), Turns(), group_s, 0

    async def sample(
        self,
        requests: Sequence[RolloutRequest],
        sampling: SamplingConfig,
        seed: int,
        *,
        begun: Callable[[], None] = lambda: None,
    ) -> list[Sample]:
        begun()
        version = self.version
        await self._student.work(self._group_s)
        ids, logprobs = np.arange(8, dtype=np.int32), np.zeros(8, np.float32)
        return [Sample(request, ids, logprobs, "stop", version, version) for request in requests]

    async def score(self, prompts: Sequence[Ids], responses: Sequence[Ids]) -> list[Floats]:
        await self._teacher.work(self._group_s / 8)  # twice: with the context and without
        return [np.zeros(len(response), np.float32) for response in responses]


async def step_seconds(
    recipe: Recipe, requests: StepRequests, sample_s: float, learn_s: float, lag: int, steps: int
) -> float:
    """Mean wall time of a step, the first two left out."""
    engine = StandIn(sample_s / GROUPS)

    async def write(records: Sequence[EvidenceRecord], step: int) -> ShardInfo:
        return ShardInfo(uri="", step=step, rows=len(records), tokens=0, sha256="")

    worker = RolloutWorker(recipe.rollout, recipe.evidence, engine, engine, write)
    stream = RolloutStream(worker, requests, steps, lag, 60.0)
    begun = 0.0
    for step in range(steps):
        if step == 2:
            begun = time.perf_counter()
        engine.version = step
        stream.advance(step)
        await worker.write(await stream.take(step), step)
        await asyncio.sleep(learn_s)
    return (time.perf_counter() - begun) / (steps - 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=12)
    steps = parser.parse_args().steps
    recipe = load_recipe(RECIPE, [f"rollout.prompts_per_step={GROUPS}"])
    requests = step_requests(recipe, str(prepare_default_model()))
    for sample_s, learn_s in SECONDS:
        rollout_s = sample_s * (1 + 1 / (4 * GROUPS))  # only the last group's scoring is not behind the sampling
        what = f"{sample_s:g} s of sampling, {learn_s:g} s of learning"
        found = asyncio.run(step_seconds(recipe, requests, sample_s, learn_s, 1, steps))
        Figure("step over its slower service, lag 1", found / max(sample_s, learn_s), "<= 1.1", what).say()
        found = asyncio.run(step_seconds(recipe, requests, sample_s, learn_s, 0, steps))
        Figure("step over the sum of its stages, lag 0", found / (rollout_s + learn_s), "<= 1.1", what).say()


if __name__ == "__main__":
    main()
