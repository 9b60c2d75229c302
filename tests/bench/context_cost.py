"""What a context does to the model that reads it: the probe's rates with the recipe's r in the prompt and without.

    python -m tests.bench.context_cost [RECIPE.toml] [--set table.key=value ...]

The frozen teacher of a run is this model under r: what it loses in capability, a student that learns from it may lose.
"""

import argparse
import asyncio

import torch

from cluster.config import Recipe, load_recipe
from cluster.models import resolve_model
from cluster.observe.sinks import probe_line
from cluster.requests import renderer_of
from cluster.run.record import probe_record
from rollout.engine import Engine
from rollout.probe import summarise
from rollout.tasks import build_task


async def measure(recipe: Recipe) -> None:
    model, task, config = resolve_model(recipe.model.path), build_task(recipe.task), recipe.probe
    renderer = renderer_of(recipe, model)
    engine = Engine(model, recipe.student, "cuda" if torch.cuda.is_available() else "cpu")
    prompts, context = task.probe_prompts(), task.training_prompts()[0].context
    try:
        for name, r in (("without", ""), ("with", context)):
            ids = [renderer.context_prompt_ids(prompt.question, r) for prompt in prompts]  # an empty r gives x
            answers = await engine.texts(
                ids,
                config.sampling(renderer.eos_token_ids, renderer.keeps_special),
                config.samples,
                seed=recipe.run.seed,
            )
            pairs = [(prompt, text) for prompt, texts in zip(prompts, answers, strict=True) for text in texts]
            print(f"{name} the context: {probe_line(probe_record(summarise(pairs, task), 0, task.name))}", flush=True)
    finally:
        engine.shutdown()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", nargs="?", default="cluster/recipes/identity.toml")
    parser.add_argument("--set", action="append", default=[])
    arguments = parser.parse_args()
    asyncio.run(measure(load_recipe(arguments.recipe, arguments.set)))
