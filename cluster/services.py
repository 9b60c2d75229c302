"""The running services of one run: start them, speak to them with deadlines, stop them."""

import asyncio
import importlib.metadata
import os
import sys
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.actors import EngineActor, LearnerActor, RolloutActor
from cluster.config import Recipe
from cluster.placement import Plan, Share, make_plan
from cluster.pool import EnginePool
from evidence.diagnostics import TokenStats
from evidence.records import Floats, Ids, ShardInfo
from rollout.worker import StepRollouts

T = TypeVar("T")
STOP_DEADLINE_S = 15.0  # for engines that may be hung: they are killed after it


async def within(seconds: float, what: str, work: Awaitable[T]) -> T:
    """`work`, or TimeoutError naming who was late."""
    try:
        return await asyncio.wait_for(_as_coroutine(work), seconds)
    except TimeoutError:
        raise TimeoutError(f"{what}: no answer within {seconds:g} s") from None


async def _as_coroutine(work: Awaitable[T]) -> T:
    return await work


@dataclass(frozen=True)
class LearnedStep:
    """One learner step over all ranks."""

    loss: float
    metrics: dict[str, float]
    grad_norm: float
    row_tokens: int
    skipped_rows: int
    stats: list[tuple[bool, TokenStats]]
    logprobs: dict[str, Floats]  # log pi_theta(y|x) by rollout_id, before the step


class Services:
    """Handles of every actor of one run. `start` builds them; each call below has a deadline and a name."""

    def __init__(
        self, recipe: Recipe, model: str, teacher: str, plan: Plan, storage: str, metadata: dict[str, str]
    ) -> None:
        self.recipe, self.model, self.plan = recipe, model, plan
        self._storage, self._metadata = storage, metadata
        self._bundle = reserve_one_node(recipe, plan) if plan.colocated else None
        backend = f"edge_{plan.transport}"
        self.students = self._engines("student", model, recipe.student, plan.student, backend)
        self.teachers = self._engines(
            "teacher", teacher, recipe.teacher, plan.teacher, backend if recipe.teacher.follows else None
        )
        self._pools = {"student": self.students, "teacher": self.teachers}
        self.learners = [
            self._options(LearnerActor, plan.learner, learner_environment(plan)).remote(recipe, model, teacher)
            for _ in range(recipe.learner.num_ranks)
        ]

    def _engines(self, pool: str, model: str, config: Any, share: Share, backend: str | None) -> list[Any]:
        actor = self._options(EngineActor, share)
        return [
            actor.remote(
                f"{pool} engine {index}", model, config, self.plan.device, backend, self.recipe.weights.in_flight
            )
            for index in range(config.num_engines)
        ]

    def _options(self, actor: Any, share: Share, environment: dict[str, str] | None = None) -> Any:
        """The actor class with its resources, inside the reserved bundle where the plan is colocated."""
        strategy: Any = "DEFAULT"
        if self._bundle is not None:
            strategy = PlacementGroupSchedulingStrategy(self._bundle, placement_group_bundle_index=0)
        return actor.options(
            num_cpus=share.num_cpus,
            num_gpus=share.num_gpus,
            runtime_env={"env_vars": environment or {}},
            scheduling_strategy=strategy,
        )

    async def start(self) -> None:
        """Engines and ranks start side by side; then the rollout service and the weight transport connect them."""
        student, teacher, learner = self.recipe.student, self.recipe.teacher, self.recipe.learner
        address, port, _ = await within(learner.start_deadline_s, "learner rank 0", self.learners[0].address.remote())
        async with asyncio.TaskGroup() as group:
            for pool, handles, config in (("student", self.students, student), ("teacher", self.teachers, teacher)):
                for index, handle in enumerate(handles):
                    what = f"start of {pool} engine {index}"
                    group.create_task(within(config.start_deadline_s, what, handle.start.remote()))
            for rank, handle in enumerate(self.learners):
                begun = handle.start.remote(rank, learner.num_ranks, address, port)
                group.create_task(within(learner.start_deadline_s, f"start of learner rank {rank}", begun))
        await self._open_transport("student")
        if teacher.follows:
            await self._open_transport("teacher")
        self.rollout = self._options(RolloutActor, Share(num_cpus=0, num_gpus=0)).remote(
            self.recipe, self.model, self.students, self.teachers, self._storage, self._metadata
        )
        self.student_pool = EnginePool(self.students, student.max_num_seqs)

    async def _open_transport(self, pool: str) -> None:
        seconds, what = self.recipe.weights.deadline_s, f"opening the weight transport to the {pool} engines"
        address, port, _ = await within(seconds, "learner rank 0", self.learners[0].address.remote())
        arguments = (pool, self.plan.transport, self._pools[pool], address, port)
        await self._every_rank(seconds, what, "open_transport", *arguments)

    async def advance(self, version: int, digest: str) -> None:
        """Tells the rollout service which version the student's engines hold."""
        work = self.rollout.advance.remote(version, digest)
        await within(self.recipe.rollout.deadline_s, f"rollout service at version {version}", work)

    async def take(self, step: int) -> StepRollouts:
        """The step's rollouts; each group of them has its own deadline, and so has one that is sampled again."""
        work = self.rollout.take.remote(step)
        return await within(2 * self.recipe.rollout.deadline_s, f"rollout service at step {step}", work)

    async def refresh_teacher(self, version: int) -> None:
        """The teacher's engines take the learner's weights, between one group's scores and the next's."""
        seconds = self.recipe.rollout.deadline_s
        await within(seconds, "pausing the scoring", self.rollout.pause_scoring.remote())
        await self.push("teacher", version)
        await within(seconds, "resuming the scoring", self.rollout.resume_scoring.remote(version))

    async def learn(self, shard: ShardInfo) -> LearnedStep:
        what = f"learner at step {shard.step}"
        reports = await self._every_rank(self.recipe.learner.step_deadline_s, what, "step", shard)
        keys = reports[0].metrics
        return LearnedStep(
            loss=sum(report.loss for report in reports),
            metrics={key: sum(report.metrics.get(key, 0.0) for report in reports) for key in keys},
            grad_norm=reports[0].grad_norm,
            row_tokens=sum(report.row_tokens for report in reports),
            skipped_rows=reports[0].skipped_rows,
            stats=[pair for report in reports for pair in report.stats],
            logprobs={name: values for report in reports for name, values in report.logprobs.items()},
        )

    async def push(self, pool: str, version: int) -> str:
        """Every engine of `pool` holds `version` with the digest that was sent, or RuntimeError names the one that
        does not."""
        seconds, what = self.recipe.weights.deadline_s, f"weight push of version {version}"
        digests = await self._every_rank(seconds, what, "push", pool, version)
        for index, handle in enumerate(self._pools[pool]):
            held, digest = await within(seconds, f"{pool} engine {index}", handle.weight_state.remote())
            if (held, digest) != (version, digests[0]):
                raise RuntimeError(
                    f"{what}: {pool} engine {index} holds version {held} with digest {digest}, "
                    f"expected version {version} with digest {digests[0]}"
                )
        return str(digests[0])

    async def canary(self, pool: str, prompt_ids: Ids, response_ids: Ids, version: int) -> float:
        """Scores one fixed text on every engine of `pool` and on the learner, whose weights they hold.

        Returns:
            the largest mean |engine - learner| over the engines, nats a token.

        Raises:
            RuntimeError: an engine disagrees by more than `weights.canary_tolerance`; the message names it.
        """
        seconds = self.recipe.weights.deadline_s
        expected: Floats = (
            await self._every_rank(seconds, "canary on the learner", "score", prompt_ids, response_ids)
        )[0]
        worst = 0.0
        for index, handle in enumerate(self._pools[pool]):
            work = handle.score.remote([prompt_ids], [response_ids])
            found = (await within(seconds, f"canary on {pool} engine {index}", work))[0]
            difference = float(np.abs(found - expected).mean())
            if not difference <= self.recipe.weights.canary_tolerance:
                raise RuntimeError(
                    f"canary at version {version}: {pool} engine {index} differs from the learner by {difference:.3f} "
                    f"nats a token on average, expected at most {self.recipe.weights.canary_tolerance:g}: its weights "
                    "are not the learner's"
                )
            worst = max(worst, difference)
        return worst

    async def save(self, folder: Path, step: int) -> None:
        await self._every_rank(self.recipe.learner.step_deadline_s, "saving a checkpoint", "save", str(folder), step)

    async def load(self, folder: Path) -> int:
        steps = await self._every_rank(
            self.recipe.learner.start_deadline_s, "loading a checkpoint", "load", str(folder)
        )
        return int(steps[0])

    async def export(self, folder: Path) -> None:
        await self._every_rank(self.recipe.learner.step_deadline_s, "exporting the model", "export", str(folder))

    async def _every_rank(self, seconds: float, what: str, method: str, *arguments: Any) -> list[Any]:
        work = asyncio.gather(*(getattr(handle, method).remote(*arguments) for handle in self.learners))
        return list(await within(seconds, what, work))

    def stop(self) -> None:
        """Ends every actor. Engines first end their own children and give back the shared memory between them."""
        ending = [handle.shutdown.remote() for handle in (*self.students, *self.teachers)]
        ray.wait(ending, num_returns=len(ending), timeout=STOP_DEADLINE_S)
        for handle in (
            *self.students,
            *self.teachers,
            *self.learners,
            *([self.rollout] if hasattr(self, "rollout") else []),
        ):
            ray.kill(handle)
        if self._bundle is not None:
            remove_placement_group(self._bundle)


def connect() -> None:
    """Joins the cluster of RAY_ADDRESS (a submitted job has one) or starts a local Ray."""
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False, logging_level="ERROR")
    else:
        ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")


def plan_for(recipe: Recipe) -> Plan:
    """The placement of `recipe` on the connected cluster."""
    resources = ray.cluster_resources()
    nodes = sum(1 for node in ray.nodes() if node["Alive"])
    return make_plan(recipe, resources.get("CPU", 0.0), resources.get("GPU", 0.0), nodes)


def code_version() -> str:
    return importlib.metadata.version("edge-opd")


def reserve_one_node(recipe: Recipe, plan: Plan) -> PlacementGroup:
    """One bundle for every colocated actor, so that they share one node and, with a GPU, the same one.

    Raises:
        TimeoutError: the cluster has the resources but does not give them.
    """
    pools = (
        (plan.student, recipe.student.num_engines),
        (plan.teacher, recipe.teacher.num_engines),
        (plan.learner, recipe.learner.num_ranks),
    )
    bundle = {"CPU": sum(share.num_cpus * count for share, count in pools)}
    if plan.device != "cpu":
        bundle["GPU"] = 1.0
    group = placement_group([bundle])
    if not group.wait(timeout_seconds=recipe.student.start_deadline_s):
        remove_placement_group(group)
        raise TimeoutError(
            f"placement: no node gave {bundle} within {recipe.student.start_deadline_s:g} s; other jobs may hold it"
        )
    return group


def learner_environment(plan: Plan) -> dict[str, str]:
    """Environment of a learner process, set before it imports torch: Ray would otherwise allow it one thread."""
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])  # ninja, for DeepSpeed
    if plan.device != "cpu":
        return {"PATH": tools}
    # Passive waiting: engines and learner share the cores.
    threads = {"OMP_NUM_THREADS": str(plan.threads), "OMP_WAIT_POLICY": "PASSIVE"}
    return {"PATH": tools, "DS_ACCELERATOR": "cpu", **threads}
