"""The services of one run: reserved, built, started, ended."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.config import Recipe
from cluster.fleet.launch import learner_environment, placed
from cluster.fleet.learner_actor import LearnerActor, Place
from cluster.fleet.placement import Plan
from cluster.fleet.ray_cluster import reserved
from cluster.fleet.rollout_actor import RolloutActor
from cluster.fleet.services import LearnerService, RolloutService
from cluster.models import for_every_host
from evidence.storage import locate


@dataclass(frozen=True)
class Services:
    """What the driver speaks to."""

    rollout: RolloutService
    learner: LearnerService
    transport: str = ""  # of weights

    async def connect(self, pool: str) -> bool:
        """The weight transport leads to those engines of `pool` that have started. Whether it led to others before.

        It is opened anew where an engine is lost amid that, which is as often as the fleet replaces one."""
        failure: RuntimeError | None = None
        while workers := await self.rollout.enlist(pool):
            try:
                opening = self.learner.open_transport(pool, self.transport, self.rollout.handle, workers)
                await self.rollout.beside(opening)
            except RuntimeError as error:
                failure = error
            else:
                return True
        if failure is not None:  # of the engines that still stand
            raise failure
        return False


@asynccontextmanager
async def running(
    recipe: Recipe, plan: Plan, run_file: Path, storage: str, metadata: dict[str, str]
) -> AsyncIterator[Services]:
    """The services' actors, inside what is reserved for them; `start` starts what they hold. All is given back at the
    end, also of a failure half-way.

    run_file: of the run's folder, by which a rank knows whether it sees it. storage: where shards go. metadata: of each
    shard.
    """
    student = for_every_host(recipe.model.path)
    teacher = for_every_host(recipe.teacher.path) if recipe.teacher.path else student
    models = {"student": student, "teacher": teacher}
    async with reserved(plan, recipe.student.start_deadline_s) as group, AsyncExitStack() as ending:
        learner = _learner(recipe, plan, group, models, run_file)
        ending.callback(learner.stop)
        rollout = _rollout(recipe, plan, group, models, storage, metadata)
        ending.callback(rollout.stop)
        yield Services(rollout, learner, plan.transport)


def _learner(
    recipe: Recipe, plan: Plan, group: PlacementGroup, models: dict[str, str], run_file: Path
) -> LearnerService:
    environment = learner_environment(plan)
    ranks = [
        placed(LearnerActor, plan, group, "learner", rank, environment).remote(
            recipe, models["student"], models["teacher"]
        )
        for rank in range(recipe.learner.num_ranks)
    ]
    return LearnerService(ranks, recipe, run_file)


def _rollout(
    recipe: Recipe, plan: Plan, group: PlacementGroup, models: dict[str, str], storage: str, metadata: dict[str, str]
) -> RolloutService:
    # Beside the driver: where shards may go to the run's own folder.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = RolloutActor.options(num_cpus=0, scheduling_strategy=here)  # type: ignore[attr-defined]
    return RolloutService(actor.remote(recipe, plan, group, models, storage, metadata), recipe)


async def start(services: Services, recipe: Recipe, plan: Plan, storage: str, root: Path) -> dict[str, str]:
    """Engines and ranks start, side by side or in turn; then the weight transport connects them.

    Returns:
        the address of the host of each engine and rank, by its name.

    Raises:
        ValueError: what the recipe writes would not be found again on another host.
    """
    rollout, learner = services.rollout, services.learner
    async with asyncio.TaskGroup() as group:
        engines = group.create_task(rollout.start())  # at once: they take longest
        places = await learner.places()
        require_common_folder(recipe, storage, places, root)
        if plan.starts_in_turn:
            await asyncio.wait([engines])
        await learner.start(places)
    hosts = engines.result()
    await services.connect("student")
    if recipe.teacher.follows:
        await services.connect("teacher")
    return hosts | {f"learner rank {rank}": place.host for rank, place in enumerate(places)}


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
