"""How many rollouts the controller can feed: real requests, stream, pools, rule and shards over stand-in engines.

    python -m tests.bench.controller [--engines 8 64 256] [--steps 12]

Every engine runs SLOTS rollouts at a time, whose lengths are log-normal, and is otherwise free: what is missing from a
utilisation of 1 is the controller's, and so is its processor time. All of it is in one process.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from cluster.config import Recipe, load_recipe
from cluster.default_model import prepare_default_model
from cluster.pool import EnginePool
from cluster.requests import step_requests
from evidence.records import EvidenceRecord, Floats, Ids, RolloutRequest, Sample, ShardInfo
from evidence.schema import to_table
from evidence.shards import write_shard
from rollout.config import EngineConfig, SamplingConfig
from rollout.stream import RolloutStream
from rollout.worker import RolloutWorker
from tests.bench.figures import Figure

SLOTS = EngineConfig().max_num_seqs  # rollouts at a time
MEAN_S, SCORING_S = 2.9, 0.05  # seconds of one rollout, and of scoring one group
TOKENS = 40


class StandIn:
    """An engine that waits as long as its rollouts would take."""

    def __init__(self, seed: int) -> None:
        self._rng, self._slots, self.busy_s = np.random.default_rng(seed), asyncio.Semaphore(SLOTS), 0.0
        self._ids, self._logprobs = np.arange(TOKENS, dtype=np.int32), np.zeros(TOKENS, np.float32)
        self.version = 0

    async def sample(self, requests: Sequence[RolloutRequest], sampling: SamplingConfig, seed: int) -> list[Sample]:
        seconds = MEAN_S * self._rng.lognormal(-0.125, 0.5, len(requests))
        return list(await asyncio.gather(*(self._one(*pair) for pair in zip(requests, seconds, strict=True))))

    async def _one(self, request: RolloutRequest, seconds: float) -> Sample:
        async with self._slots:
            await asyncio.sleep(seconds)
        self.busy_s += seconds
        return Sample(request, self._ids, self._logprobs, "stop", self.version, self.version)

    async def score(self, prompts: Sequence[Ids], responses: Sequence[Ids]) -> list[Floats]:
        await asyncio.sleep(SCORING_S)
        return [self._rng.normal(-1, 1, len(response)).astype(np.float32) for response in responses]


def handle(engine: StandIn) -> Any:
    return SimpleNamespace(sample=SimpleNamespace(remote=engine.sample), score=SimpleNamespace(remote=engine.score))


async def feed(recipe: Recipe, model: str, num_engines: int, steps: int, folder: str) -> dict[str, float]:
    """The figures of `steps` steps, each as large as what the engines run at a time."""
    engines = [StandIn(index) for index in range(num_engines)]
    pool = EnginePool([handle(engine) for engine in engines], SLOTS)

    def write(records: Sequence[EvidenceRecord], step: int) -> ShardInfo:
        metadata = {"run_id": "bench", "mask_rule": recipe.evidence.to_json(), "model_id": model, "code_version": "0"}
        table = to_table(records, metadata | {"step": str(step), "weights_digest": "0"})
        return write_shard(table, folder, f"{num_engines}-{step:06d}.arrow")

    worker = RolloutWorker(recipe.rollout, recipe.evidence, pool, pool, write)
    stream = RolloutStream(worker, step_requests(recipe, model), steps + 2, 2, 600.0)
    rows, wall, cpu, busy = 0, 0.0, 0.0, 0.0
    for step in range(steps):
        for engine in engines:
            engine.version = step
        stream.advance(step)
        rows += worker.write(await stream.take(step), step).shard.rows
        if step == 1:  # two steps to fill the engines
            rows, wall, cpu = 0, time.perf_counter(), time.process_time()
            busy = sum(engine.busy_s for engine in engines)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    busy = sum(engine.busy_s for engine in engines) - busy
    return {
        "rollouts_per_s": rows / wall,
        "utilisation": busy / (wall * num_engines * SLOTS),
        "controller_us_per_rollout": cpu / rows * 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engines", type=int, nargs="+", default=[8, 64, 256])
    parser.add_argument("--steps", type=int, default=12)
    arguments = parser.parse_args()
    model = str(prepare_default_model())
    for num_engines in arguments.engines:
        groups = num_engines * SLOTS // 8
        recipe = load_recipe("cluster/recipes/N3.toml", [f"rollout.prompts_per_step={groups}"])
        with tempfile.TemporaryDirectory() as folder:
            found = asyncio.run(feed(recipe, model, num_engines, arguments.steps, folder))
        say(found, num_engines, num_engines == max(arguments.engines))


def say(found: dict[str, float], num_engines: int, is_largest: bool) -> None:
    who = f"{num_engines} engines"
    Figure("rollouts/s", found["rollouts_per_s"], ">= 5000" if is_largest else "", who).say()
    Figure("utilisation of engines", found["utilisation"], ">= 0.95", who).say()
    Figure("processor time a rollout, us", found["controller_us_per_rollout"], "", who).say()


if __name__ == "__main__":
    main()
