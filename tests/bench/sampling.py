"""Sampling tokens/s in the pipeline, through the pool and an engine's actor, over a bare vLLM loop on the same step.

    python -m tests.bench.sampling [RECIPE.toml] [--rounds 5]

The bare loop is `vllm.LLM.generate` in this process, with the settings of the actor's engine: the same prompts, samples
a prompt and batch, and the log-prob of each token. Answers differ, from one distribution, so tokens are counted on both
sides. The bare loop has loaded torch before its environment is set, so its OpenMP threads spin as long as they like.
"""

import argparse
import asyncio
import os
import statistics
import time
from collections import Counter
from dataclasses import replace

import ray
import torch
from vllm import LLM, SamplingParams

from cluster.actors import EngineActor
from cluster.config import Recipe, load_recipe
from cluster.models import resolve_model
from cluster.pool import EnginePool
from cluster.requests import step_requests
from cluster.services import connect
from rollout.config import EngineConfig, SamplingConfig
from rollout.engine import cpu_environment, engine_arguments
from rollout.requests import GroupRequests
from tests.bench.figures import Figure

CUDA_SHARE = 0.3  # of a GPU's memory, for each of the two engines


def bare_engine(model: str, config: EngineConfig, device: str) -> LLM:
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    if device == "cpu":
        os.environ.update(cpu_environment(config))
    return LLM(**engine_arguments(model, config, device))


def bare(llm: LLM, groups: list[GroupRequests], sampling: SamplingConfig) -> int:
    """Samples the step; returns its tokens."""
    shared = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k,
              "max_tokens": sampling.max_tokens, "logprobs": 0, "detokenize": False}  # fmt: skip
    prompts, params = [], []
    for group in groups:
        by_prompt = Counter(tuple(row.sampler_ids.tolist()) for row in group.rows)
        prompts += [{"prompt_token_ids": list(ids)} for ids in by_prompt]
        params += [SamplingParams(n=count, seed=group.seed, **shared) for count in by_prompt.values()]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    return sum(len(completion.token_ids) for output in outputs for completion in output.outputs)


async def ours(pool: EnginePool, groups: list[GroupRequests], sampling: SamplingConfig) -> int:
    """As the rollout service does; returns the tokens."""
    drawn = await asyncio.gather(*(pool.sample(group.rows, sampling, group.seed) for group in groups))
    return sum(len(sample.response_ids) for samples in drawn for sample in samples)


def measure(recipe: Recipe, rounds: int) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, config = resolve_model(recipe.model.path), replace(recipe.student, gpu_memory_utilization=CUDA_SHARE)
    sampling = SamplingConfig(recipe.rollout.temperature, recipe.rollout.max_response_tokens)
    requests = step_requests(recipe, model)
    llm = bare_engine(model, config, device)
    connect()
    options = {"num_cpus": 1, "num_gpus": 0.5 if device == "cuda" else 0}
    actor = EngineActor.options(**options).remote(  # type: ignore[attr-defined]
        "sampling bench", model, config, device, None, True, None
    )
    ray.get(actor.start.remote(), timeout=300)
    pool = EnginePool([actor], config.max_num_seqs)
    ratios, rates = [], []
    try:
        for step in range(-1, rounds):  # the first warms both up
            groups, _ = requests.of(max(step, 0))
            begun = time.perf_counter()
            bare_tokens = bare(llm, groups, sampling)
            between = time.perf_counter()
            our_tokens = asyncio.run(ours(pool, groups, sampling))
            ended = time.perf_counter()
            if step >= 0:
                rates.append(our_tokens / (ended - between))
                ratios.append(rates[-1] / (bare_tokens / (between - begun)))
    finally:
        ray.get(actor.shutdown.remote(), timeout=60)
        ray.shutdown()
    note = f"{min(ratios):.2f} to {max(ratios):.2f} in {rounds} steps; {statistics.median(rates):.0f} tokens/s"
    Figure("sampling over a bare vLLM loop, tokens/s", statistics.median(ratios), ">= 0.95", note).say()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", nargs="?", default="cluster/recipes/N3.toml")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    measure(load_recipe(arguments.recipe), arguments.rounds)
