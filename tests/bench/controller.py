"""How many rollouts the controller can feed: real requests, stream, pools, rule and shards over stand-in engines.

    python -m tests.bench.controller [--engines 8 64 256] [--steps 12] [--mean-s 2.9] [--short-s 0.25]

Every engine runs as many rollouts at a time as a recipe's does by default. Their lengths are log-normal, and the engine
is otherwise free, and groups are taken as they are done: what is missing from a utilisation of 1 is the controller's,
and so is its processor time. All of it is in one process. What waiting for long rollouts costs is in
tests/bench/group_order.py.

Engines whose rollouts take 2.9 s on average bound the figure themselves: 256 of them can do 256 * 64 / 2.9 = 5,650 a
second. What the controller can feed shows where they could do far more than it: with rollouts of 0.25 s, 65,536.
"""

import argparse
import asyncio
import heapq
import tempfile
import time
from collections.abc import Callable, Sequence

import numpy as np

from cluster.config import Recipe, load_recipe
from cluster.default_model import prepare_default_model
from cluster.fleet.processes import collect_seldom
from cluster.fleet.scheduler import EnginePool, Scheduler
from cluster.requests import step_requests
from evidence.records import EvidenceRecord, Floats, Ids, RolloutRequest, Sample, ShardInfo
from evidence.schema import to_table
from evidence.shards import write_shard
from rollout.config import EngineConfig, SamplingConfig
from rollout.stream import RolloutStream
from rollout.tasks import build_task
from rollout.worker import RolloutWorker, rewarder
from tests.bench.figures import Figure
from tests.fakes import FakeEngine

SLOTS = EngineConfig().max_num_seqs  # rollouts at a time
MEAN_S, SHORT_S = 2.9, 0.25  # seconds of one rollout: what engines take, and less than the controller takes for it
SPREAD, SCORING_S = 0.5, 0.05  # the deviation of their log; seconds of scoring a group
TOKENS = 40


class StandIn(FakeEngine):
    """An engine that waits as long as its rollouts would take, each in the slot that is free first."""

    def __init__(self, seed: int, mean_s: float) -> None:
        super().__init__()
        self._mean_s = mean_s
        self._rng, self._free_at = np.random.default_rng(seed), [0.0] * SLOTS  # a heap
        self._ids, self._logprobs = np.arange(TOKENS, dtype=np.int32), np.zeros(TOKENS, np.float32)
        self.spans = [(0.0, 0.0)]  # from when until when a slot was taken

    async def sample(
        self,
        requests: Sequence[RolloutRequest],
        sampling: SamplingConfig,
        seed: int,
        base: bool = False,
        *,
        begun: Callable[[], None] = lambda: None,
    ) -> list[Sample]:
        begun()
        now = asyncio.get_running_loop().time()
        own = []
        for seconds in self._mean_s * self._rng.lognormal(-SPREAD * SPREAD / 2, SPREAD, len(requests)):
            begin = max(now, self._free_at[0])
            heapq.heapreplace(self._free_at, begin + seconds)
            own.append((begin, begin + seconds))
        self.spans += own
        await asyncio.sleep(max(end for _, end in own) - now)
        return [Sample(one, self._ids, self._logprobs, "stop", self.version, self.version) for one in requests]

    async def score(self, prompts: Sequence[Ids], responses: Sequence[Ids], base: bool = False) -> list[Floats]:
        await asyncio.sleep(SCORING_S)
        return list(self._rng.normal(-1, 1, (len(responses), TOKENS)).astype(np.float32))

    def busy_s(self, begin: float, end: float) -> float:
        """Slot seconds taken between two times."""
        return float(np.clip(np.array(self.spans), begin, end) @ [-1, 1] @ np.ones(len(self.spans)))


async def feed(
    recipe: Recipe, model: str, num_engines: int, steps: int, folder: str, mean_s: float = MEAN_S
) -> dict[str, float]:
    """The figures of `steps` steps, each as large as what the engines run at a time. The worker is that of a run."""
    engines = [StandIn(index, mean_s) for index in range(num_engines)]
    pool = EnginePool(Scheduler(engines, SLOTS))

    async def write(records: Sequence[EvidenceRecord], step: int) -> ShardInfo:
        metadata = {"run_id": "bench", "mask_rule": recipe.evidence.to_json(), "model_id": model, "code_version": "0"}
        table = to_table(records, metadata | {"step": str(step), "weights_digest": "0"})
        return write_shard(table, folder, f"{num_engines}-{step:06d}.arrow")

    task = build_task(recipe.task)
    requests = step_requests(recipe, model, task)
    verifies = any(prompt.answer is not None for prompt in requests.prompts)
    reward = rewarder(requests, task.reward)
    worker = RolloutWorker(recipe.rollout, recipe.evidence, pool, pool, write, reward, verifies=verifies)
    stream = RolloutStream(worker, requests, steps + 2, 2, 600.0, "done")
    rows, cpu, clock = 0, 0.0, asyncio.get_running_loop().time
    begun = clock()
    for step in range(steps):
        for engine in engines:
            engine.version = step
        stream.advance(step)
        rows += (await worker.write(await stream.take(step), step)).shard.rows
        if step == 1:  # two steps to fill the engines
            rows, begun, cpu = 0, clock(), time.process_time()
    ended, cpu = clock(), time.process_time() - cpu
    busy = sum(engine.busy_s(begun, ended) for engine in engines)
    return {
        "rollouts_per_s": rows / (ended - begun),
        "utilisation": busy / ((ended - begun) * num_engines * SLOTS),
        "controller_us_per_rollout": cpu / rows * 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", type=int, nargs="+", default=[8, 64, 256])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--mean-s", type=float, default=MEAN_S, help="of a rollout, where the engines are the bound")
    parser.add_argument("--short-s", type=float, default=SHORT_S, help="where the controller is, with the most engines")
    arguments = parser.parse_args()
    model = str(prepare_default_model())
    collect_seldom()  # as the rollout service does

    def found(num_engines: int, mean_s: float) -> dict[str, float]:
        groups = num_engines * SLOTS // 8
        recipe = load_recipe("cluster/recipes/N3.toml", [f"rollout.prompts_per_step={groups}"])
        with tempfile.TemporaryDirectory() as folder:
            return asyncio.run(feed(recipe, model, num_engines, arguments.steps, folder, mean_s))

    for num_engines in arguments.engines:
        most, kept_busy = num_engines * SLOTS / arguments.mean_s, found(num_engines, arguments.mean_s)
        who = f"{num_engines} engines"
        Figure("rollouts/s", kept_busy["rollouts_per_s"], "", f"{who}, which can do {most:,.0f}").say()
        Figure("utilisation of engines", kept_busy["utilisation"], ">= 0.97", who).say()
        Figure("processor time a rollout, us", kept_busy["controller_us_per_rollout"], "", who).say()
    most, fed = max(arguments.engines) * SLOTS / arguments.short_s, found(max(arguments.engines), arguments.short_s)
    who = f"{max(arguments.engines)} engines, which can do {most:,.0f}"
    Figure("rollouts/s that the controller feeds", fed["rollouts_per_s"], ">= 8000", who).say()
    Figure("processor time a rollout that it feeds, us", fed["controller_us_per_rollout"], "", who).say()


if __name__ == "__main__":
    main()
