"""Ray: joining a cluster, and reserving a plan's resources on it."""

import asyncio
import atexit
import os
import secrets
import shutil
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.config import Recipe
from cluster.fleet.placement import Plan, Share, make_plan
from cluster.fleet.processes import Process, collect_seldom, end_processes, log_to_file, own_processes
from cluster.fleet.ray_quirks import (
    ask_for_a_token,
    forget_worker_script,
    keep_token_private,
    see_own_gpus,
    start_fewer_processes,
    stay_on_loopback,
)
from cluster.fleet.scratch import RAY, enter, hold, remove_left
from cluster.sizing.cards import Card, own_cards, settle_devices
from rollout.cores import num_cores

LOOK_S = 1  # between two looks at what the cluster has given
CARDS_S = 60.0  # for all nodes' answers, with the start of a worker on each


def connect() -> None:
    """Joins the cluster of RAY_ADDRESS (a submitted job has one) or starts a local Ray, which only this host reaches,
    and which asks for a token of this run's own.

    Raises:
        ValueError: CUDA_VISIBLE_DEVICES names a GPU that this machine lacks.
    """
    if ray.is_initialized():
        return
    if has_own_ray():
        settle_devices(os.environ)
    run = secrets.token_hex(4)  # as its actors know it
    folder = hold(run)
    atexit.register(_disconnect, folder)
    keep_token_private(Path.home())
    if not has_own_ray():
        ray.init(namespace=run, log_to_driver=False, logging_level="ERROR")
        return
    stay_on_loopback()
    start_fewer_processes()
    ask_for_a_token(os.environ)
    ray.init(namespace=run, log_to_driver=False, logging_level="ERROR", **local_arguments(folder))


def local_arguments(folder: Path) -> dict[str, Any]:
    """What a Ray of the run's own is started with: the job's cores, of which Ray itself knows a quota, not an affinity.

    folder: the run's, for temporary files.
    """
    own = None if os.environ.get("RAY_TMPDIR") else str(folder / RAY)
    return {"address": "local", "num_cpus": num_cores(), "include_dashboard": False, "_temp_dir": own}


def _disconnect(folder: Path) -> None:
    """A Ray of the run's own ends before its session is removed."""
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def settle(name: str) -> str:
    """For an actor's process, before anything else: its output goes to a log of its own, the path of which is
    returned, its temporary files to the run's folder on its host, it looks for garbage seldom and sees its GPUs, and
    what it spawns does not run Ray's script."""
    collect_seldom()
    forget_worker_script(sys.modules["__main__"])
    log = log_to_file(name)
    enter(ray.get_runtime_context().namespace)
    see_own_gpus(os.environ, ray.get_runtime_context().get_accelerator_ids().get("GPU", []))
    return log


def plan_for(recipe: Recipe) -> Plan:
    """The placement of `recipe` on the connected cluster."""
    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return make_plan(recipe, [Share(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in found])


def metrics_address() -> str:
    """Where the figures of this process are for a Prometheus: of its Ray node, at a port that Ray chose or was told."""
    here = ray.get_runtime_context().get_node_id()
    (node,) = [node for node in ray.nodes() if node["NodeID"] == here]
    return f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"


def cluster_cards(left: Callable[[list[Card]], list[Card]] = list) -> list[Card]:
    """The GPUs that the connected Ray may use, as their drivers know them: a node's, in the environment of its own Ray.

    left: to what others have left of those of a Ray of the run's own.
    """
    if has_own_ray():
        return own_cards(left)
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
    there = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
    asked = [ray.remote(own_cards).options(num_cpus=0, scheduling_strategy=node).remote() for node in there]
    return [card for cards in ray.get(asked, timeout=CARDS_S) for card in cards]


def has_own_ray() -> bool:
    """Whether the Ray is this run's, and not a cluster that others use too."""
    return not os.environ.get("RAY_ADDRESS")


@asynccontextmanager
async def reserved(plan: Plan, deadline_s: float) -> AsyncIterator[PlacementGroup]:
    """The plan's bundles, each on one node, given back at the end. A run that is asked to stop hears it meanwhile.

    Raises:
        TimeoutError: the cluster has the resources but does not give them.
    """
    bundles = [{"CPU": share.cpus} | ({"GPU": share.gpus} if share.gpus else {}) for share in plan.bundles]
    group = placement_group(bundles, strategy=plan.strategy)
    try:
        end = time.monotonic() + deadline_s
        while not (given := group.wait(timeout_seconds=LOOK_S)) and time.monotonic() < end:
            await asyncio.sleep(0.01)  # signals are heard by the event loop
        if not given:
            asked = ", ".join(str(share) for share in plan.bundles)
            raise TimeoutError(
                f"placement: the cluster did not give {asked} within {deadline_s:g} s; other jobs may hold them"
            )
        yield group
    finally:
        remove_placement_group(group)


@dataclass(frozen=True)
class Footprint:
    """The processes of an actor, and the Ray node that they are on."""

    node: str
    processes: tuple[Process, ...]

    def end(self, grace_s: float = 0.0) -> None:
        """Kills what Ray does not: a process that was stopped, and what a killed one had started. It is not waited
        for on another node.

        grace_s: for an actor that Ray was told to kill: Ray reports a worker that is gone before it is told.
        """
        if self.node == ray.get_runtime_context().get_node_id():
            end_processes(self.processes, grace_s)
            return
        there = NodeAffinitySchedulingStrategy(self.node, soft=False)
        ray.remote(_end_there).options(num_cpus=0, scheduling_strategy=there).remote(self.processes, grace_s)


def _end_there(processes: Sequence[Process], grace_s: float) -> None:
    end_processes(processes, grace_s)
    remove_left()


def own_footprint(*others: int) -> Footprint:
    """Of the actor that asks. others: the numbers of processes that are its own too, and did not start from it."""
    return Footprint(str(ray.get_runtime_context().get_node_id()), tuple(own_processes(*others)))
