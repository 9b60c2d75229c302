"""The rollout service: a stream of groups over the fleet, which writes to the run's storage. A thin Ray shell."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup

from cluster.config import Recipe
from cluster.fleet.calls import Died
from cluster.fleet.canary import CanaryText
from cluster.fleet.engines import Maker
from cluster.fleet.fleet import Fleet
from cluster.fleet.launch import build_engines, fork_servers
from cluster.fleet.placement import Plan
from cluster.fleet.ray_cluster import Footprint, own_footprint, settle
from cluster.fleet.roster import News
from cluster.models import resolve_model
from cluster.torchless import rollout_makes_no_model
from evidence.patience import retried_beside
from evidence.records import EvidenceRecord, Floats, Ids, ShardInfo
from evidence.schema import to_table
from evidence.shards import shard_name, write_shard
from evidence.storage import join
from evidence.telemetry import Sample, Span
from rollout.config import SamplingConfig
from rollout.transformers_quirks import find_no_torch
from rollout.waits import Late
from rollout.worker import StepRollouts


class Rollouts:
    """Owns the engines and the rollouts under way."""

    def __init__(
        self,
        recipe: Recipe,
        engines: Mapping[str, Sequence[Maker]],
        model: str,
        storage: str,
        metadata: dict[str, str],
        in_turn: bool = False,
    ) -> None:
        """engines: by pool. model: the student's. in_turn: whether the engines start one after another."""
        self._recipe, self._model, self._storage, self._metadata = recipe, model, storage, metadata
        self._digests: dict[int, str] = {}
        pools = {"student": recipe.student, "teacher": recipe.teacher}
        taking = ("student", "teacher") if recipe.teacher.follows else ("student",)
        self._fleet = Fleet(engines, pools, recipe.faults, taking, in_turn=in_turn)

    def start_deadline_s(self) -> float:
        """How long `start` may take."""
        return self._fleet.roster.start_deadline_s()

    async def start(self) -> dict[str, str]:
        """The address of each engine's host, by the engine's name.

        Raises:
            Died: an engine died or does not answer, and all may start again with what stands.
            RuntimeError: names another that did not start.
        """
        from cluster.requests import step_requests
        from rollout.stream import RolloutStream
        from rollout.tasks import build_task
        from rollout.tasks.boxed import verdicts
        from rollout.worker import RolloutWorker, rewarder

        starting = asyncio.create_task(self._fleet.roster.start())
        await asyncio.sleep(0)  # the engines load while this process does
        recipe, run, task = self._recipe, self._recipe.run, build_task(self._recipe.task)
        requests = step_requests(recipe, resolve_model(self._model), task)
        self._worker = RolloutWorker(
            config=recipe.rollout,
            evidence=recipe.evidence,
            sampler=self._fleet.pool(recipe.rollout.sampler),
            scorer=self._fleet.pool("teacher"),
            write=self._write,
            reward=rewarder(requests, task.reward),
            student_scorer=self._fleet.pool("student"),
            verdicts=verdicts,
            skips=recipe.faults.nonfinite == "skip",
            activity=self._fleet.activity,
            verifies=any(prompt.answer is not None for prompt in requests.prompts),
        )
        bounds = run.steps, run.max_policy_lag, recipe.rollout.deadline_s
        self._stream = RolloutStream(self._worker, requests, *bounds, run.group_order, self._fleet.deadlines)
        try:
            return await starting
        except Late as late:
            raise Died(str(late)) from None

    async def ping(self) -> None:
        """Whether it answers."""

    async def footprint(self) -> Footprint:
        """The service's processes; of its engines only those that were forked here by now."""
        return own_footprint()

    async def resume(self, learned: list[str]) -> None:
        self._stream.resume(learned)

    async def advance(self, version: int, weights_digest: str) -> None:
        """The student's engines hold `version` with this digest."""
        self._digests[version] = weights_digest
        self._stream.advance(version)

    async def take(self, step: int) -> StepRollouts:
        return await self._worker.write(await self._stream.take(step), step)

    async def texts(
        self, what: str, prompts: list[Ids], sampling: SamplingConfig, num_samples: int, seed: int
    ) -> list[list[str]]:
        async with self._fleet.deadlines.within(self._recipe.rollout.deadline_s, f"{what}: no answer"):
            return await self._fleet.pool("student").texts(prompts, sampling, num_samples, seed)

    async def pause_scoring(self) -> None:
        await self._stream.pause_scoring()

    async def resume_scoring(self, teacher_version: int) -> None:
        await self._stream.resume_scoring(teacher_version)

    async def news(self, seconds: float, seen: int, wanted: dict[str, int]) -> News:
        return await self._fleet.roster.news(seconds, seen, wanted)

    async def enlist(self, pool: str) -> int:
        return await self._fleet.roster.enlist(pool)

    async def admit(self, pool: str) -> int:
        return self._fleet.roster.admit(pool)

    async def tell(self, pool: str, verb: str, arguments: Sequence[Any], seconds: float) -> None:
        await self._fleet.tell(pool, verb, arguments, seconds)

    async def prove_weights(self, pool: str, version: int, digest: str, seconds: float) -> None:
        await self._fleet.prove_weights(pool, version, digest, seconds)

    async def canary(self, pool: str, version: int, text: CanaryText, seconds: float) -> dict[str, float]:
        return await self._fleet.canary(pool, version, text, seconds)

    async def observe(self, seconds: float) -> tuple[Sample, list[Span]]:
        """The service now, and what its engines did since the last call."""
        groups, oldest_s = self._stream.states()
        engines = await self._fleet.states(seconds)
        waiting, version = self._fleet.waiting(), self._stream.version
        return Sample(time.time(), version, groups, oldest_s, waiting, engines), self._fleet.activity.take()

    async def teacher_scores(self, prompt_ids: Ids, response_ids: Ids) -> Floats:
        return await self._fleet.teacher_scores(prompt_ids, response_ids)

    async def prove_teacher(self, text: CanaryText, tolerance: float, seconds: float) -> None:
        await self._fleet.prove_teacher(text, tolerance, seconds)

    async def sleep(self, seconds: float) -> None:
        await self._fleet.sleep(seconds)

    async def wake_up(self, seconds: float) -> None:
        await self._fleet.wake_up(seconds)

    async def stop(self) -> None:
        await self._fleet.stop()

    async def _write(self, records: Sequence[EvidenceRecord], step: int) -> ShardInfo:
        newest = max(record.scored.sample.policy_version_max for record in records)
        table = to_table(records, self._metadata | {"step": str(step), "weights_digest": self._digests[newest]})
        name = shard_name(step)
        work = partial(write_shard, table, self._storage, name)
        return await retried_beside(self._recipe.faults.store_s, join(self._storage, name), work)


@ray.remote
class RolloutActor(Rollouts):
    """The service in a process of its own, with engines in actors."""

    def __init__(
        self,
        recipe: Recipe,
        plan: Plan,
        reserved: PlacementGroup,
        models: dict[str, str],
        storage: str,
        metadata: dict[str, str],
    ) -> None:
        self.log = settle("rollout")
        self._fork_servers = fork_servers(recipe, plan)
        engines = build_engines(recipe, plan, reserved, models)
        super().__init__(recipe, engines, models["student"], storage, metadata, plan.starts_in_turn)
        if rollout_makes_no_model(recipe):
            find_no_torch()
