"""Scoring tokens/s with a prompt's prefill shared by its rollouts, over vLLM's prompt_logprobs of each row alone.

    python -m tests.bench.scoring_sharing [--rounds 3]

Eight responses a prompt of 10 to 40 tokens, under a context of 1,500 tokens and under the shipped persona's size.
"""

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable

import numpy as np

from cluster.default_model import prepare_default_model
from evidence.records import Floats, Ids
from rollout.config import EngineConfig
from rollout.engine import Engine
from tests.bench.figures import Figure

SAMPLES = 8
SHAPES = {"long context": (1, 1540, ">= 3"), "persona": (8, 70, "")}  # prompts, tokens of each, target


async def timed(work: Callable[[], Awaitable[list[Floats]]]) -> tuple[float, list[Floats]]:
    start = time.perf_counter()
    rows = await work()
    return time.perf_counter() - start, rows


async def measure(rounds: int) -> None:
    engine = Engine(str(prepare_default_model()), EngineConfig(dtype="float32", window=2048, kv_cache_gib=2.0), "cpu")
    rng = np.random.default_rng(0)

    async def alone(prompts: list[Ids], responses: list[Ids]) -> list[Floats]:
        """As `Engine.score`, reading nothing from the cache."""
        full = [np.concatenate(pair) for pair in zip(prompts, responses, strict=True)]
        outputs = await asyncio.gather(*(engine._read(ids, shared=False, base=False) for ids in full))
        flats = [output.prompt_logprobs for output in outputs]
        return [
            np.asarray(flat.logprobs, np.float32)[np.asarray(flat.start_indices[len(prompt) :])]
            for flat, prompt in zip(flats, prompts, strict=True)
        ]

    try:
        for name, (num_prompts, size, target) in SHAPES.items():
            ratios, worst = [], 0.0
            for _ in range(rounds):
                made = [rng.integers(5, 40_000, size).astype(np.int32) for _ in range(num_prompts)]
                prompts = [prompt for prompt in made for _ in range(SAMPLES)]
                lengths = rng.integers(10, 41, len(prompts))
                responses = [rng.integers(5, 40_000, length).astype(np.int32) for length in lengths]
                bare_s, bare = await timed(lambda p=prompts, y=responses: alone(p, y))  # type: ignore[misc]
                # The bare pass does not read the cache, but fills it.
                await engine._llm.reset_prefix_cache()
                ours_s, ours = await timed(lambda p=prompts, y=responses: engine.score(p, y))  # type: ignore[misc]
                ratios.append(bare_s / ours_s)
                worst = max(worst, *(float(np.abs(a - b).max()) for a, b in zip(bare, ours, strict=True)))
            note = f"{name}; {min(ratios):.2f} to {max(ratios):.2f}; log-probs differ by at most {worst:.0e}"
            Figure("scoring over each row alone, tokens/s", statistics.median(ratios), target, note).say()
    finally:
        engine.shutdown()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    asyncio.run(measure(parser.parse_args().rounds))
