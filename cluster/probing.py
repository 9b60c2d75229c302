"""`edge-opd probe`: the task's probe on any model folder or run, with one engine and no cluster."""

import asyncio
from pathlib import Path
from typing import Any

from cluster.config import Recipe, build, load_recipe, parse_overrides
from cluster.run import resolve_model
from rollout.config import SamplingConfig
from rollout.probe import summarise, to_json
from rollout.tasks import build_task


def probe_model(model_or_run: str, task: str, overrides: list[str]) -> dict[str, Any]:
    """The figures of `probes.jsonl` for a Hugging Face folder, a hub id, "default", or a run's exported model.

    A run is probed with its own recipe's task and probe settings, a model with the defaults; `overrides` change both.
    """
    folder = Path(model_or_run)
    if (folder / "config.toml").is_file():
        recipe, model = load_recipe(folder / "config.toml", overrides), str(folder / "export")
    else:
        recipe, model = build(Recipe, parse_overrides(overrides, {"task": {"name": task}}), "--set"), model_or_run
    return asyncio.run(_probe(recipe, resolve_model(model)))


async def _probe(recipe: Recipe, model: str) -> dict[str, Any]:
    import torch
    from transformers import AutoTokenizer

    from rollout.engine import Engine
    from rollout.render import Renderer

    task, config = build_task(recipe.task), recipe.probe
    renderer = Renderer(AutoTokenizer.from_pretrained(model), recipe.rollout.context_position, model)
    prompts = task.probe_prompts()
    engine = Engine(model, recipe.student, "cuda" if torch.cuda.is_available() else "cpu")
    try:
        answers = await engine.texts(
            [renderer.prompt_ids(prompt.question) for prompt in prompts],
            SamplingConfig(config.temperature, config.max_tokens, config.top_p, config.top_k),
            config.samples,
            seed=recipe.run.seed,
        )
    finally:
        engine.shutdown()
    pairs = [(prompt, text) for prompt, texts in zip(prompts, answers, strict=True) for text in texts]
    return to_json(summarise(pairs, task), 0, task.name)
