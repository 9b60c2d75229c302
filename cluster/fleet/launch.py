"""Actors with their share of what is reserved, and the environment of their processes."""

import os
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.config import Recipe
from cluster.fleet.engine_actor import EngineActor
from cluster.fleet.engines import EngineClient, Maker
from cluster.fleet.fork_server import ForkServer, place
from cluster.fleet.http_engine import HttpEngine
from cluster.fleet.placement import Plan
from cluster.fleet.ray_engine import RayEngine
from cluster.fleet.ray_quirks import omp_threads
from cluster.fleet.scheduler import BATCHES
from cluster.models import resolve_model
from cluster.weights.transports import backend as backend_of
from rollout.config import AdapterConfig, EngineConfig
from rollout.vllm_quirks import IPC_ENVIRONMENT

CONTROL = 100  # calls of an engine beside those that are for sequences: of a push, a check, a ping


def placed(
    actor: Any,
    plan: Plan,
    reserved: PlacementGroup,
    pool: str,
    index: int,
    environment: dict[str, str],
    sequences: int = 0,
) -> Any:
    """Options of the actor class `actor` for engine or rank `index` of a pool, inside what is reserved for it.

    sequences: that an engine may have under way, each a call of its own. Ray would let 1,000 calls of an asynchronous
    actor in and the next one wait, which may be that of a push that all others wait for.
    """
    share = plan.shares[pool][index]
    place = PlacementGroupSchedulingStrategy(reserved, placement_group_bundle_index=plan.bundle(pool, index))
    return actor.options(
        num_cpus=share.cpus,
        num_gpus=share.gpus,
        runtime_env={"env_vars": environment},
        scheduling_strategy=place,
        **({"max_concurrency": sequences + CONTROL} if sequences else {}),
    )


def build_engines(
    recipe: Recipe, plan: Plan, reserved: PlacementGroup, models: dict[str, str]
) -> dict[str, list[Maker]]:
    """What makes the engine of each place of each pool, which then is not started yet.

    models: of each pool, as every host can resolve it.
    """
    adapter = adapter_of(recipe, models["student"])
    backend = backend_of(plan.transport) if adapter is None else None

    def build(pool: str, config: EngineConfig, *receives: Any) -> list[Maker]:
        arguments = (models[pool], config, plan.device, *receives, plan.engines_sleep)
        key = recipe.teacher_key if pool == "teacher" else "model.path"

        def make(index: int) -> EngineClient:
            name = f"{pool} engine {index}"
            calls = BATCHES * config.max_num_seqs
            actor = placed(EngineActor, plan, reserved, pool, index, engine_environment(plan), calls)
            return RayEngine(name, actor.remote(name, *arguments, key=key))

        return [partial(make, index) for index in range(len(plan.shares[pool]))]

    in_flight = recipe.weights.in_flight
    students = build("student", recipe.student, backend, in_flight, adapter)
    if recipe.teacher.url:
        server = partial(HttpEngine, "teacher server", recipe.teacher.url, recipe.teacher, models["student"])
        return {"student": students, "teacher": [server]}
    teachers = build("teacher", recipe.teacher, backend if recipe.teacher.follows else None, in_flight, None)
    return {"student": students, "teacher": teachers}


def fork_servers(recipe: Recipe, plan: Plan) -> list[ForkServer]:
    """Those of which this host's CPU engines are forked, one for each configuration of OpenMP."""
    if plan.device != "cpu":
        return []
    nodes = sum(node["Alive"] for node in ray.nodes())
    here = ray.get_runtime_context().get_node_id()
    configs = {"student": recipe.student, "teacher": recipe.teacher}
    wanted = {place(config, here): config for pool, config in configs.items() if plan.shares[pool]}
    # Among many hosts there may be no engine on this one.
    return [ForkServer(at, config, at_once=nodes == 1) for at, config in wanted.items()]


def adapter_of(recipe: Recipe, model: str) -> AdapterConfig | None:
    """What the student's engines take, if anything. ValueError for layers that the model lacks."""
    if not recipe.learner.lora_rank:
        return None
    from learner.adapter import adapted_names  # takes seconds, for nothing where there is no adapter

    return AdapterConfig(recipe.learner.lora_rank, adapted_names(resolve_model(model), recipe.learner))


def engine_environment(plan: Plan) -> dict[str, str]:
    """Environment of an engine's process, set before it imports vLLM."""
    return dict(IPC_ENVIRONMENT) if plan.transport == "ipc" else {}


ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # what torch's is told, by either name
EXPANDS = "expandable_segments"


def whole_segments(environment: Mapping[str, str]) -> dict[str, str]:
    """What of `environment` is another in a process whose GPU memory others open by CUDA's handles: of segments that
    expand they would take file descriptors out of it, which a container without the right to trace forbids."""
    told = {name: environment[name].split(",") for name in ALLOCATOR if EXPANDS in environment.get(name, "")}
    return {
        name: ",".join([*(part.strip() for part in parts if EXPANDS not in part), f"{EXPANDS}:False"])
        for name, parts in told.items()
    }


KEPT_SHAPES = 64  # by a learner on a CPU: those of a few packs


def learner_environment(plan: Plan) -> dict[str, str]:
    """Environment of a learner process, set before it imports torch."""
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])  # ninja, for DeepSpeed
    # Beside a GPU too, where a model is loaded and compared with its own forward, and checkpoints are written. Engines
    # and learner share the cores: a thread that waits spins for the gap between two short regions, and then sleeps.
    threads = omp_threads(plan.threads) | {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "30000"}
    if plan.device != "cpu":
        return {"PATH": tools, **threads, **(whole_segments(os.environ) if plan.transport == "ipc" else {})}
    # What a micro-batch frees is kept until its end (`learner.memory.give_back`), since a new page costs more than what
    # is written to it. oneDNN and torch's layer over it each keep what they made for the last 1024 shapes, and no two
    # packs have one length: a step of the default recipe added 70 MB (findings/torch-cpu-keeps-every-length.sh).
    memory = {"MALLOC_MMAP_THRESHOLD_": str(1 << 32), "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
    memory |= dict.fromkeys(("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"), str(KEPT_SHAPES))
    return {"PATH": tools, "DS_ACCELERATOR": "cpu", **threads, **memory}
