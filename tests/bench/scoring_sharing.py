"""Scoring tokens/s with a prompt's prefill shared by its rollouts, over vLLM's prompt_logprobs of each row alone.

    python -m tests.bench.scoring_sharing [--rounds 3]

Eight responses a prompt of 10 to 40 tokens, under a context of 1,500 tokens and under the shipped persona's size. Then
the same long context where less can be shared: it ends where a block of the cache does, or its responses begin alike;
each over the first, in the same round.
"""

import argparse
import asyncio
import statistics
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import numpy as np

from cluster.default_model import prepare_default_model
from evidence.records import Floats, Ids
from rollout.config import EngineConfig
from rollout.engine import Engine
from rollout.outputs import response_logprobs
from tests.bench.figures import Figure

SAMPLES = 8
BLOCK = 32


@dataclass(frozen=True)
class Shape:
    """`alike`: tokens that a prompt's responses, each then of 40, begin with; None: nothing, and 10 to 40 tokens."""

    num_prompts: int
    num_tokens: int
    alike: int | None = None


GOOD = "a response each, prompt not at a block's end"
ALONE = {"long context": (Shape(1, 1540), ">= 3"), "persona": (Shape(8, 70), "")}  # with the target
BESIDE_GOOD = {
    GOOD: Shape(1, 47 * BLOCK - 1, 0),
    "a prompt at a block's end": Shape(1, 47 * BLOCK, 0),
    **{f"{alike} response tokens alike": Shape(1, 47 * BLOCK - 1, alike) for alike in (4, 16, 32, 40)},
    "both": Shape(1, 47 * BLOCK, 32),
}


def rows(shape: Shape, rng: np.random.Generator) -> tuple[list[Ids], list[Ids]]:
    """Prompts and responses of random tokens, `SAMPLES` rows a prompt."""

    def tokens(length: int) -> Ids:
        return rng.integers(5, 40_000, length).astype(np.int32)

    prompts, responses = [], []
    for _ in range(shape.num_prompts):
        prompt, beginning = tokens(shape.num_tokens), tokens(shape.alike or 0)
        prompts += [prompt] * SAMPLES
        lengths = rng.integers(10, 41, SAMPLES) if shape.alike is None else [40 - shape.alike] * SAMPLES
        responses += [np.concatenate([beginning, tokens(int(length))]) for length in lengths]
    return prompts, responses


async def timed(work: Callable[[], Awaitable[list[Floats]]]) -> tuple[float, list[Floats]]:
    start = time.perf_counter()
    found = await work()
    return time.perf_counter() - start, found


async def alone(engine: Engine, prompts: list[Ids], responses: list[Ids]) -> list[Floats]:
    """As `Engine.score`, reading nothing from the cache."""
    full = [np.concatenate(pair) for pair in zip(prompts, responses, strict=True)]
    outputs = await asyncio.gather(*(engine._read(ids, num_prompt=1, base=False) for ids in full))
    return [response_logprobs(output, len(y)) for output, y in zip(outputs, responses, strict=True)]


async def over_each_row_alone(engine: Engine, rng: np.random.Generator, rounds: int) -> None:
    for name, (shape, target) in ALONE.items():
        ratios, worst = [], 0.0
        for _ in range(rounds):
            prompts, responses = rows(shape, rng)
            bare_s, bare = await timed(lambda p=prompts, y=responses: alone(engine, p, y))  # type: ignore[misc]
            # The bare pass does not read the cache, but fills it.
            await engine._llm.reset_prefix_cache()
            ours_s, ours = await timed(lambda p=prompts, y=responses: engine.score(p, y))  # type: ignore[misc]
            ratios.append(bare_s / ours_s)
            worst = max(worst, *(float(np.abs(a - b).max()) for a, b in zip(bare, ours, strict=True)))
        note = f"{name}; {min(ratios):.2f} to {max(ratios):.2f}; log-probs differ by at most {worst:.0e}"
        Figure("scoring over each row alone, tokens/s", statistics.median(ratios), target, note).say()


async def over_the_good_case(engine: Engine, rng: np.random.Generator, rounds: int) -> None:
    ratios: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        seconds = {}
        for name, shape in BESIDE_GOOD.items():
            prompts, responses = rows(shape, rng)
            seconds[name], _ = await timed(lambda p=prompts, y=responses: engine.score(p, y))  # type: ignore[misc]
        for name in BESIDE_GOOD:
            ratios[name].append(seconds[name] / seconds[GOOD])
    for name, found in ratios.items():
        note = f"{name}; {min(found):.2f} to {max(found):.2f}"
        Figure("scoring over the good case, seconds", statistics.median(found), "<= 1.15", note).say()


async def measure(rounds: int) -> None:
    engine = Engine(str(prepare_default_model()), EngineConfig(dtype="float32", window=2048, kv_cache_gib=2.0), "cpu")
    rng = np.random.default_rng(0)
    try:
        await over_each_row_alone(engine, rng, rounds)
        await over_the_good_case(engine, rng, rounds)
    finally:
        engine.shutdown()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    asyncio.run(measure(parser.parse_args().rounds))
