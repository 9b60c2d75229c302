"""What it costs that an engine counts what it does: seconds of a step's sampling over those of an engine that does not.

    python -m tests.bench.counting [--rounds 20]

Two engines in this process, in turns, with the same requests and seeds; every second round the other one goes first.
The engine that does not count has no statistics logger, so that vLLM gathers no statistics for it either.
"""

import argparse
import asyncio
import statistics
import time
from unittest.mock import patch

from cluster.config import load_recipe
from cluster.models import resolve_model
from cluster.requests import step_requests
from rollout.config import SamplingConfig
from rollout.engine import Engine
from tests.bench.figures import Figure
from tests.runs import RECIPE


async def measure(rounds: int) -> None:
    recipe = load_recipe(RECIPE)
    model = resolve_model(recipe.model.path, weights=True)
    sampling = SamplingConfig(recipe.rollout.temperature, recipe.rollout.max_response_tokens)
    requests = step_requests(recipe, model)
    counts = Engine(model, recipe.student, "cpu")
    from vllm.v1.engine.async_llm import AsyncLLM

    made = AsyncLLM.from_engine_args
    with patch.object(AsyncLLM, "from_engine_args", lambda arguments, **_: made(arguments)):
        silent = Engine(model, recipe.student, "cpu")
    ratios = []
    try:
        for step in range(-1, rounds):  # the first warms both up
            groups, _ = requests.of(max(step, 0))
            seconds = {}
            for engine in (counts, silent) if step % 2 else (silent, counts):
                begun = time.perf_counter()
                await asyncio.gather(*(engine.sample(group.rows, sampling, group.seed) for group in groups))
                seconds[engine] = time.perf_counter() - begun
            if step >= 0:
                ratios.append(seconds[counts] / seconds[silent])
    finally:
        counts.shutdown()
        silent.shutdown()
    assert counts.tally.stats["generated_tokens"] and not silent.tally.stats.get("generated_tokens")
    error = statistics.stdev(ratios) / len(ratios) ** 0.5
    note = f"{min(ratios):.3f} to {max(ratios):.3f} in {rounds} rounds, standard error of the mean {error:.4f}"
    Figure("sampling by an engine that counts over one that does not", statistics.mean(ratios), "<= 1.01", note).say()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    asyncio.run(measure(parser.parse_args().rounds))
