"""Sampling tokens/s in the pipeline, through the pool and an engine's actor, over a bare vLLM loop on the same step.

    python -m tests.bench.sampling [RECIPE.toml] [--rounds 9]

The bare loop is `vllm.LLM.generate` in this process, with the settings of the actor's engine: the same prompts, all at
once, as many tokens for each as the pipeline drew, and the log-prob of each. It has loaded torch before its environment
is set, so its OpenMP threads spin as long as they like.
"""

import argparse
import asyncio
import os
import statistics
import time
from dataclasses import replace
from typing import Any

import ray
import torch
from vllm import LLM, SamplingParams

from cluster.config import Recipe, load_recipe
from cluster.fleet.engine_actor import EngineActor
from cluster.fleet.ray_cluster import connect
from cluster.fleet.ray_engine import RayEngine
from cluster.fleet.scheduler import EnginePool, Scheduler
from cluster.models import resolve_model
from cluster.requests import step_requests
from evidence.records import RolloutRequest, Sample
from rollout.config import EngineConfig, SamplingConfig
from rollout.engine_arguments import engine_arguments
from rollout.requests import GroupRequests
from rollout.vllm_quirks.environment import enter_cpu_environment, enter_gpu_environment
from tests.bench.figures import Figure

# Of a GPU, for each of the two engines: its share of the memory, and a cache of its own size, since one that starts
# would take what the other allocates meanwhile for its own.
CUDA: dict[str, Any] = {"gpu_memory_utilization": 0.3, "kv_cache_gib": 8.0}


def bare_engine(model: str, config: EngineConfig, device: str) -> LLM:
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    if device == "cpu":
        enter_cpu_environment(config)
    else:
        enter_gpu_environment()
    return LLM(**engine_arguments(model, config, device))


def bare(llm: LLM, rows: list[RolloutRequest], samples: list[Sample], temperature: float, seed: int) -> None:
    """Samples as many tokens for each row as its sample has."""
    shared = {"temperature": temperature, "logprobs": 0, "detokenize": False, "ignore_eos": True}
    prompts = [{"prompt_token_ids": row.sampler_ids.tolist()} for row in rows]
    lengths = [len(sample.response_ids) for sample in samples]
    params = [SamplingParams(seed=seed + index, max_tokens=size, **shared) for index, size in enumerate(lengths)]
    llm.generate(prompts, params, use_tqdm=False)


async def ours(pool: EnginePool, groups: list[GroupRequests], sampling: SamplingConfig) -> list[Sample]:
    """As the rollout service does."""
    drawn = await asyncio.gather(*(pool.sample(group.rows, sampling, group.seed) for group in groups))
    return [sample for samples in drawn for sample in samples]


def measure(recipe: Recipe, rounds: int) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = resolve_model(recipe.model.path, weights=True)
    config = replace(recipe.student, **CUDA) if device == "cuda" else recipe.student
    sampling = SamplingConfig(recipe.rollout.temperature, recipe.rollout.max_response_tokens)
    requests = step_requests(recipe, model)
    llm = bare_engine(model, config, device)
    connect()
    options = {"num_cpus": 1, "num_gpus": 0.5 if device == "cuda" else 0}
    actor = EngineActor.options(**options).remote(  # type: ignore[attr-defined]
        "sampling bench", model, config, device, None, True, None
    )
    ray.get(actor.start.remote(), timeout=300)
    pool = EnginePool(Scheduler([RayEngine("sampling bench", actor)], config.max_num_seqs))
    ratios, rates = [], []
    try:
        for step in range(-1, rounds):  # the first warms both up
            groups, _ = requests.of(max(step, 0))
            rows = [row for group in groups for row in group.rows]
            begun = time.perf_counter()
            samples = asyncio.run(ours(pool, groups, sampling))
            between = time.perf_counter()
            bare(llm, rows, samples, sampling.temperature, groups[0].seed)
            ended = time.perf_counter()
            if step >= 0:
                rates.append(sum(len(sample.response_ids) for sample in samples) / (between - begun))
                ratios.append((ended - between) / (between - begun))
    finally:
        ray.get(actor.shutdown.remote(), timeout=60)
        ray.shutdown()
    note = f"{min(ratios):.2f} to {max(ratios):.2f} in {rounds} steps; {statistics.median(rates):.0f} tokens/s"
    Figure("sampling over a bare vLLM loop, tokens/s", statistics.median(ratios), ">= 0.97", note).say()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", nargs="?", default="cluster/recipes/N3.toml")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    measure(load_recipe(arguments.recipe), arguments.rounds)
