"""The running services of one run: start them, speak to them with deadlines, stop them."""

import asyncio
import importlib.metadata
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import ray
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from cluster.config import Recipe
from cluster.fleet.actors import EngineActor, LearnerActor, Place, RolloutActor
from cluster.fleet.placement import Plan, Share, make_plan
from cluster.fleet.scheduler import EnginePool
from cluster.models import for_every_host
from cluster.run.rundir import RunDir
from evidence.records import Ids, ShardInfo
from evidence.storage import locate
from learner.report import LearnedStep, over_ranks
from rollout.config import AdapterConfig
from rollout.waits import deadline
from rollout.worker import StepRollouts

T = TypeVar("T")
LOST = (RayActorError, OutOfMemoryError, NodeDiedError)  # how Ray tells that an actor's process is no more
STOP_DEADLINE_S = 15.0  # for engines that may be hung: they are killed after it


async def within(seconds: float, what: str, work: Awaitable[T]) -> T:
    """`work`, or TimeoutError naming who was late."""
    async with deadline(seconds, f"{what}: no answer"):
        return await work


async def _as_coroutine(work: Awaitable[T]) -> T:
    return await work


async def all_within(seconds: float, what: str, who: str, answers: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The answer of each rank or engine (`who`), in their order; the first failure ends the waiting.

    Raises:
        TimeoutError: names those without an answer. A rank that is late holds up all that meet it in a collective.
    """
    tasks = [asyncio.create_task(answer) for answer in answers]
    if not tasks:  # a pool without engines, as the teacher's beside an adapter
        return []
    done, late = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
    for task in late:
        task.cancel()
    for task in done:
        task.result()
    if late:
        places = ", ".join(str(place) for place, task in enumerate(tasks) if task in late)
        raise TimeoutError(f"{what}: no answer from {who} {places} of {len(tasks)} within {seconds:g} s")
    return [task.result() for task in tasks]


async def _ask_all(
    handles: Sequence[Any], seconds: float, what: str, who: str, method: str, *arguments: Any
) -> list[Any]:
    """What each actor's `method` answers, all of them asked at once."""
    answers = [_as_coroutine(getattr(handle, method).remote(*arguments)) for handle in handles]
    return await all_within(seconds, what, who, answers)


async def _each_within(seconds: float, what: str, stream: Any) -> AsyncIterator[Any]:
    """What an actor yields, each with the deadline."""
    while True:
        try:
            yield await within(seconds, what, await within(seconds, what, anext(stream)))
        except StopAsyncIteration:
            return


async def _start(turns: asyncio.Semaphore, seconds: float, name: str, handle: Any, *arguments: Any) -> Any:
    """What the actor's `start` answers, once it is its turn."""
    async with turns:
        return await within(seconds, f"start of {name}", handle.start.remote(*arguments))


def _name(pool: str, index: int) -> str:
    return f"{pool} {'rank' if pool == 'learner' else 'engine'} {index}"


class Services:
    """Handles of every actor of one run. `start` builds them; each call below has a deadline and a name."""

    def __init__(self, recipe: Recipe, plan: Plan, run_dir: RunDir, storage: str, metadata: dict[str, str]) -> None:
        self.recipe, self.plan = recipe, plan
        self._run_dir, self._storage, self._metadata = run_dir, storage, metadata
        model = self._model = for_every_host(recipe.model.path)
        teacher = for_every_host(recipe.teacher.path) if recipe.teacher.path else model
        self._reserved = reserve(plan, recipe.student.start_deadline_s)
        self._names: dict[str, str] = {}  # of actors, by Ray's id
        rank, targets = recipe.learner.lora_rank, recipe.learner.lora_targets
        backend, adapter = (None, AdapterConfig(rank, targets)) if rank else (f"edge_{plan.transport}", None)
        self.students = self._engines("student", model, recipe.student, backend, adapter)
        self.teachers = self._engines("teacher", teacher, recipe.teacher, backend if recipe.teacher.follows else None)
        self._pools = {"student": self.students, "teacher": self.teachers}
        environment = learner_environment(plan)
        self.learners = [
            self._placed(LearnerActor, "learner", rank, (recipe, model, teacher), environment)
            for rank in range(recipe.learner.num_ranks)
        ]

    def _engines(
        self, pool: str, model: str, config: Any, backend: str | None, adapter: AdapterConfig | None = None
    ) -> list[Any]:
        arguments = (model, config, self.plan.device, backend, self.recipe.weights.in_flight, adapter)
        environment = engine_environment(self.plan)
        return [
            self._placed(
                EngineActor, pool, index, (_name(pool, index), *arguments, self.plan.engines_sleep), environment
            )
            for index in range(len(self.plan.shares[pool]))
        ]

    def _placed(
        self, actor: Any, pool: str, index: int, arguments: tuple[Any, ...], environment: dict[str, str] | None = None
    ) -> Any:
        """An actor with its resources, inside what is reserved for it."""
        share, bundle = self.plan.shares[pool][index], self.plan.bundle(pool, index)
        handle = actor.options(
            num_cpus=share.cpus,
            num_gpus=share.gpus,
            runtime_env={"env_vars": environment or {}},
            scheduling_strategy=PlacementGroupSchedulingStrategy(self._reserved, placement_group_bundle_index=bundle),
        ).remote(*arguments)
        self._names[handle._actor_id.hex()] = _name(pool, index)
        return handle

    async def start(self) -> dict[str, str]:
        """Engines and ranks start; then the rollout service and the weight transport connect them.

        Returns:
            the address of the host of each engine and rank, by its name.

        Raises:
            ValueError: what the recipe writes would not be found again on another host.
        """
        student, teacher = self.recipe.student, self.recipe.teacher
        places = await self._places()
        require_common_folder(self.recipe, self._storage, places, self._run_dir.root)
        hosts = await self._start_all(places)
        await self._open_transport("student")
        if teacher.follows:
            await self._open_transport("teacher")
        # Beside the loop: where shards may go to the run's own folder.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.rollout = RolloutActor.options(num_cpus=0, scheduling_strategy=here).remote(  # type: ignore[attr-defined]
            self.recipe, self._model, self.students, self.teachers, self._storage, self._metadata
        )
        self._names[self.rollout._actor_id.hex()] = "rollout service"
        self.student_pool = EnginePool(self.students, student.max_num_seqs)
        ranks = {_name("learner", rank): place.host for rank, place in enumerate(places)}
        return hosts | ranks

    async def _start_all(self, places: Sequence[Place]) -> dict[str, str]:
        """Side by side, or in turn on a shared GPU, where an engine that starts would take what others allocate
        meanwhile for its own; the address of each engine's host."""
        turns = asyncio.Semaphore(1 if self.plan.device == "cuda" and self.plan.colocated else len(self._names))
        hosts: dict[str, asyncio.Task[str]] = {}
        async with asyncio.TaskGroup() as group:
            for pool, config in (("student", self.recipe.student), ("teacher", self.recipe.teacher)):
                for index, handle in enumerate(self._pools[pool]):
                    name = _name(pool, index)
                    hosts[name] = group.create_task(_start(turns, config.start_deadline_s, name, handle))
            for rank, handle in enumerate(self.learners):
                name, seconds = _name("learner", rank), self.recipe.learner.start_deadline_s
                group.create_task(_start(turns, seconds, name, handle, rank, places))
        return {name: host.result() for name, host in hosts.items()}

    async def _places(self) -> list[Place]:
        seconds = self.recipe.learner.start_deadline_s
        return await self._every_rank(seconds, "places of the learner's ranks", "place", str(self._run_dir.config))

    async def _open_transport(self, pool: str) -> None:
        seconds, what = self.recipe.weights.deadline_s, f"opening the weight transport to the {pool} engines"
        meeting = (await self._places())[0]
        arguments = (pool, self.plan.transport, self._pools[pool], meeting.host, meeting.port)
        await self._every_rank(seconds, what, "open_transport", *arguments)

    async def resume(self, learned: list[str]) -> None:
        """Tells the rollout service which groups the steps so far have learned from."""
        work = self.rollout.resume.remote(learned)
        await within(self.recipe.rollout.deadline_s, "rollout service, resumed", work)

    async def advance(self, version: int, digest: str) -> None:
        """Tells the rollout service which version the student's engines hold."""
        work = self.rollout.advance.remote(version, digest)
        await within(self.recipe.rollout.deadline_s, f"rollout service at version {version}", work)

    async def take(self, step: int) -> StepRollouts:
        """The step's rollouts; each group of them has its own deadline, and so has one that is sampled again."""
        seconds = 2 * self.recipe.rollout.deadline_s * (self.recipe.run.max_policy_lag + 1)
        return await within(seconds, f"rollout service at step {step}", self.rollout.take.remote(step))

    async def refresh_teacher(self, version: int) -> None:
        """The teacher's engines take the learner's weights, between one group's scores and the next's."""
        seconds = self.recipe.rollout.deadline_s
        await within(seconds, "pausing the scoring", self.rollout.pause_scoring.remote())
        await self.push("teacher", version)
        await within(seconds, "resuming the scoring", self.rollout.resume_scoring.remote(version))

    async def sleep(self) -> None:
        """Every engine gives back its GPU's memory."""
        await self._all_engines("engines that fall asleep", "sleep")

    async def wake(self) -> None:
        """The learner gives back what it does not use, and every engine takes its memory again."""
        what = "engines that wake up"
        await self._every_rank(self.recipe.weights.deadline_s, what, "release_cache")
        await self._all_engines(what, "wake_up")

    async def _all_engines(self, what: str, method: str) -> None:
        for pool in self._pools:
            await self._every_engine(pool, self.recipe.weights.deadline_s, what, method)

    async def learn(self, shard: ShardInfo) -> LearnedStep:
        what = f"learner at step {shard.step}"
        reports = await self._every_rank(self.recipe.learner.step_deadline_s, what, "step", shard)
        return over_ranks(reports)

    async def push(self, pool: str, version: int) -> str:
        """Every engine of `pool` holds `version` with the digest that was sent, or RuntimeError names the one that
        does not."""
        recipe, what = self.recipe, f"weight push of version {version}"
        seconds = recipe.weights.deadline_s
        has_others_first = recipe.learner.lora_rank or not recipe.weights.in_flight
        if pool == "student" and recipe.run.max_policy_lag and has_others_first:
            seconds += recipe.rollout.deadline_s  # for the rollouts under way, which end first
        digests = await self._every_rank(seconds, what, "push", pool, version)
        for index, (held, digest) in enumerate(await self._every_engine(pool, seconds, what, "weight_state")):
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
        what = f"canary at version {version}"
        expected, *_ = await self._every_rank(seconds, f"{what}: learner", "score", prompt_ids, response_ids)
        answers = await self._every_engine(pool, seconds, what, "score", [prompt_ids], [response_ids])
        worst = 0.0
        for index, (found,) in enumerate(answers):
            difference = float(np.abs(found - expected).mean())
            if not difference <= self.recipe.weights.canary_tolerance:
                raise RuntimeError(
                    f"{what}: {pool} engine {index} differs from the learner by {difference:.3f} nats a token on "
                    f"average, expected at most {self.recipe.weights.canary_tolerance:g}: its weights are not the "
                    "learner's"
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
        """The model of rank 0 as a Hugging Face folder here, whichever host the ranks are on."""
        seconds, what = self.recipe.learner.step_deadline_s, "exporting the model"
        if (await self._places())[0].sees_run:
            await self._every_rank(seconds, what, "export", str(folder))
            return
        first, *others = self.learners
        parts = first.export_parts.options(num_returns="streaming").remote()
        beside = [handle.export.remote(str(folder)) for handle in others]
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as name:
            arrived = Path(name)
            async for file_name, content in _each_within(seconds, what, parts):
                with (arrived / file_name).open("ab") as file:
                    file.write(content)
            await within(seconds, what, asyncio.gather(*beside))
            shutil.copytree(arrived, folder, dirs_exist_ok=True)

    async def _every_engine(self, pool: str, seconds: float, what: str, method: str, *arguments: Any) -> list[Any]:
        return await _ask_all(self._pools[pool], seconds, what, f"{pool} engine", method, *arguments)

    async def _every_rank(self, seconds: float, what: str, method: str, *arguments: Any) -> list[Any]:
        return await _ask_all(self.learners, seconds, what, "rank", method, *arguments)

    def obituary(self, error: Exception) -> str:
        """One line on one of `LOST`: who died, and what Ray knows of why."""
        told = getattr(error, "cause", None) or error  # from within another actor
        lines = str(told).splitlines()
        if isinstance(told, RayActorError):  # what it is about comes first, the reason last
            name = self._names.get(told.actor_id, "an actor")
            return f"{name} died: {lines[-1].partition(' Some common causes')[0]}"
        return lines[0]

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
        remove_placement_group(self._reserved)


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
    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return make_plan(recipe, [Share(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in found])


def code_version() -> str:
    return importlib.metadata.version("edge-opd")


def require_common_folder(recipe: Recipe, storage: str, places: Sequence[Place], root: Path) -> None:
    """What the learner's ranks read or write in a folder must be the same folder for all.

    Raises:
        ValueError: names the key, the rank that does not see the run's folder, and its host.
    """
    away = next((rank for rank, place in enumerate(places) if not place.sees_run), None)
    if away is None:
        return
    where = f"learner rank {away} on {places[away].host} does not see {root}"
    if locate(storage)[0] is None:
        raise ValueError(f"run.storage: found {storage} here, but {where}; expected an object store, or shared folders")
    if every := recipe.run.checkpoint_every:
        raise ValueError(f"run.checkpoint_every: found {every}, but {where}; expected 0, or a shared folder")


def reserve(plan: Plan, deadline_s: float) -> PlacementGroup:
    """The plan's bundles, each on one node.

    Raises:
        TimeoutError: the cluster has the resources but does not give them.
    """
    bundles = [{"CPU": share.cpus} | ({"GPU": share.gpus} if share.gpus else {}) for share in plan.bundles]
    group = placement_group(bundles, strategy=plan.strategy)
    if not group.wait(timeout_seconds=deadline_s):
        remove_placement_group(group)
        asked = ", ".join(str(share) for share in plan.bundles)
        raise TimeoutError(
            f"placement: the cluster did not give {asked} within {deadline_s:g} s; other jobs may hold them"
        )
    return group


def engine_environment(plan: Plan) -> dict[str, str]:
    """Environment of an engine's process, set before it imports vLLM. A handle of CUDA IPC names Python types, which
    vLLM pickles on the way to its own processes only when told to."""
    return {"VLLM_ALLOW_INSECURE_SERIALIZATION": "1"} if plan.transport == "ipc" else {}


def learner_environment(plan: Plan) -> dict[str, str]:
    """Environment of a learner process, set before it imports torch: Ray would otherwise allow it one thread."""
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])  # ninja, for DeepSpeed
    if plan.device != "cpu":
        return {"PATH": tools}
    # Engines and learner share the cores: a thread that waits spins for the gap between two short regions, and then
    # sleeps. What a step frees is kept for the next one, since a new page costs more than what is written to it.
    threads = {"OMP_NUM_THREADS": str(plan.threads), "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "30000"}
    memory = {"MALLOC_MMAP_THRESHOLD_": str(1 << 32), "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
    return {"PATH": tools, "DS_ACCELERATOR": "cpu", **threads, **memory}
