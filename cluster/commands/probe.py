"""`edge-opd probe`: the task's probe on any model folder or run, with one engine and no cluster, or on a server."""

import asyncio
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from cluster.commands.one_engine import one_engine
from cluster.commands.probe_server import ServerOptions, sent_variables, server_answers
from cluster.config import Recipe
from cluster.models import resolve_model
from cluster.observe.sinks import probe_line
from cluster.resolved import read_resolved
from cluster.run.answers import answered, paired
from cluster.run.record import ProbeRecord, line_of_probe, probe_record
from cluster.typed import build, parse_overrides
from rollout.placement import placed
from rollout.probe import summarise
from rollout.tasks import build_task
from rollout.tasks.base import ProbePrompt, Turns
from rollout.waits import deadline


def print_probe(model_or_run: str, task: str, overrides: list[str], server: ServerOptions, as_json: bool) -> int:
    """`probe_model`, in a line; the exit status."""
    result = probe_model(model_or_run, task, overrides, server)
    print(json.dumps(line_of_probe(result)) if as_json else probe_line(result))
    return 0


def probe_model(model_or_run: str, task: str, overrides: list[str], server: ServerOptions) -> ProbeRecord:
    """A probe at step 0 of a Hugging Face folder, a hub id, "default", a run's export, or a server.

    A run is probed with its own recipe's task and probe settings, anything else with the defaults; `overrides` change
    both. `server` is for "http://host:port/v1" only.

    Raises:
        ValueError: an option of a server without one, or whatever is wrong with the recipe or the model.
        RuntimeError: no answer has anything in it.
    """
    folder, on_server = Path(model_or_run), model_or_run.startswith(("http://", "https://"))
    for option, value in (("--model", server.model), ("--omit", ",".join(server.omit))):
        if value and not on_server:
            raise ValueError(f"{option}: found {value!r} beside {model_or_run}, expected it only with a server's URL")
    if not on_server and (folder / "config.toml").is_file():
        recipe, model = read_resolved(folder, overrides).recipe, _export_of(folder)
    else:
        recipe, model = build(Recipe, parse_overrides(overrides, {"task": {"name": task}}), "--set"), model_or_run
    probed, config = build_task(recipe.task), recipe.probe
    prompts = probed.probe_prompts()
    position = recipe.rollout.context_position
    chats = [placed(prompt.turns, prompt.context, position) for prompt in prompts]
    if on_server:
        say = partial(print, file=sys.stderr)
        variables = sent_variables(recipe.template, say)
        texts = asyncio.run(server_answers(model, chats, config, recipe.run.seed, server, variables, say))
        answers = list(paired(prompts, texts))
    else:
        answers = asyncio.run(_engine_answers(recipe, model, prompts, chats))
    return probe_record(summarise(answers, probed), 0, probed.name)


def _export_of(run: Path) -> str:
    if not (run / "export" / "config.json").is_file():
        raise ValueError(
            f"{run}: found a run without an export, expected one that has ended (`edge-opd export {run}` writes the "
            "model of its newest checkpoint)"
        )
    return str((run / "export").resolve())


async def _engine_answers(
    recipe: Recipe, path: str, prompts: Sequence[ProbePrompt], chats: Sequence[Turns]
) -> list[tuple[ProbePrompt, str]]:
    from cluster.requests import renderer_of

    model, config = resolve_model(path, weights=True), recipe.probe
    renderer = renderer_of(recipe, model)
    what, limit = f"probe of {path}", f"probe.max_tokens = {config.max_tokens}"
    with one_engine(model, recipe.student, f"{what}: its engine: not started (student.start_deadline_s)") as engine:
        async with deadline(recipe.rollout.deadline_s, f"{what}: no answers (rollout.deadline_s)"):
            responses = await engine.texts(
                [renderer.prompt_ids(chat) for chat in chats],
                config.sampling(renderer.eos_token_ids, renderer.keeps_special),
                config.samples,
                seed=recipe.run.seed,
            )
    answers = answered(list(paired(prompts, responses)), renderer, what, limit, partial(print, file=sys.stderr))
    if not any(text.strip() for _, text in answers):
        raise RuntimeError(f"{what}: found no answer with anything in it, expected text; {limit} bounds a response")
    return answers
