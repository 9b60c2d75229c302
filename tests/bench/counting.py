"""What it costs that an engine counts what it does: seconds of a step's sampling over those of an engine that does not.

    python -m tests.bench.counting [--rounds 10]

Two engines in this process, in turns, with the same requests and seeds; every second round the other one goes first.
Then two more, of which the other was started first. The engine that does not count has no statistics logger, so that
vLLM gathers no statistics for it either.
"""

import argparse
import asyncio
import os
import statistics
import time
from unittest.mock import patch

from vllm.v1.engine.async_llm import AsyncLLM

from cluster.config import load_recipe
from cluster.models import resolve_model
from cluster.requests import step_requests
from rollout.config import SamplingConfig
from rollout.engine import Engine
from tests.bench.figures import Figure
from tests.runs import RECIPE

MADE = AsyncLLM.from_engine_args


async def ratios(rounds: int, order: tuple[bool, bool]) -> list[float]:
    """Of each round. order: which of the two counts, as they are started."""
    recipe = load_recipe(RECIPE)
    model = resolve_model(recipe.model.path, weights=True)
    sampling = SamplingConfig(recipe.rollout.temperature, recipe.rollout.max_response_tokens)
    requests, engines, found = step_requests(recipe, model), dict[bool, Engine](), []
    for counts in order:
        make = MADE if counts else lambda arguments, **_: MADE(arguments)
        with patch.object(AsyncLLM, "from_engine_args", make):
            engines[counts] = Engine(model, recipe.student, "cpu")
    for step in range(-1, rounds):  # the first warms both up
        groups, _ = requests.of(max(step, 0))
        seconds = {}
        for counts in (True, False) if step % 2 else (False, True):
            begun = time.perf_counter()
            await asyncio.gather(*(engines[counts].sample(group.rows, sampling, group.seed) for group in groups))
            seconds[counts] = time.perf_counter() - begun
        if step >= 0:
            found.append(seconds[True] / seconds[False])
    assert engines[True].tally.stats["generated_tokens"] and not engines[False].tally.stats["generated_tokens"]
    for engine in engines.values():
        engine.shutdown()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    first, second = (asyncio.run(ratios(rounds, order)) for order in ((True, False), (False, True)))
    found = first + second
    error = statistics.stdev(found) / len(found) ** 0.5
    note = f"{statistics.mean(first):.3f} and {statistics.mean(second):.3f} by who started first, error {error:.3f}"
    Figure("sampling by an engine that counts over one that does not", statistics.mean(found), "", note).say()
    os._exit(0)  # vLLM's own end would come after the interpreter's


if __name__ == "__main__":
    main()
