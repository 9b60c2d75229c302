"""Ray: joining a cluster, and reserving a plan's resources on it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from cluster.config import Recipe
from cluster.fleet.placement import Plan, Share, make_plan


def connect() -> None:
    """Joins the cluster of RAY_ADDRESS (a submitted job has one) or starts a local Ray."""
    if ray.is_initialized():
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False, logging_level="ERROR")
    else:
        ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")


def plan_for(recipe: Recipe) -> Plan:
    """The placement of `recipe` on the connected cluster."""
    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return make_plan(recipe, [Share(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in found])


@contextmanager
def reserved(plan: Plan, deadline_s: float) -> Iterator[PlacementGroup]:
    """The plan's bundles, each on one node, given back at the end.

    Raises:
        TimeoutError: the cluster has the resources but does not give them.
    """
    bundles = [{"CPU": share.cpus} | ({"GPU": share.gpus} if share.gpus else {}) for share in plan.bundles]
    group = placement_group(bundles, strategy=plan.strategy)
    try:
        if not group.wait(timeout_seconds=deadline_s):
            asked = ", ".join(str(share) for share in plan.bundles)
            raise TimeoutError(
                f"placement: the cluster did not give {asked} within {deadline_s:g} s; other jobs may hold them"
            )
        yield group
    finally:
        remove_placement_group(group)
