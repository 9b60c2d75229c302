"""The exported model's card: what was trained in, how it was made, and what its probes say."""

import re
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import tomli_w

from cluster.config import DEFAULT_MODEL, PATHS, Recipe
from cluster.hub import name_of
from cluster.models import is_hub_id
from cluster.observe.sinks import summary_table
from cluster.run.figures import Gap
from cluster.run.notes import unshown
from cluster.run.record import ProbeRecord
from cluster.run.rundir import RunDir
from evidence.rates import RATES
from rollout.tasks.base import Task

OLDEST = "4.51.3"  # of transformers, that reads an export of the default model with the same log-probs

_CARD = """---
base_model: {base}
library_name: transformers
tags: [edge-opd, on-policy-distillation]
---
# {title}

{teaches}

- Base model: `{base}`
- Method: EDGE-OPD (arXiv 2605.23493), task `{task}`, {steps} steps
- Written with transformers {version}. {read}
- {context}
{prompts}

| figure | before | after | {told} | answers |
|---|---|---|---|---|
{rows}

Answers are sampled without the context, but those of the teacher, the base with it: what there was to learn. Brackets
are 95% Wilson intervals.{chosen}

## Recipe

What names a place, such as a local path, a bucket or a server, is left out.

{recipe}
"""
_READ = "Configuration and tokenizer are the base's own: what reads the base reads this"
_SHOWN = """Context that the teacher saw, and the student no longer needs{which}:

{fenced}
"""
_UNSHOWN = "The teacher saw a context that the student no longer needs{which} (`export.card_context` shows it)"
_UNSAID = (
    "the chat template was given a text ({names}), and says more for it than what stands here, which is without it "
    "(`export.card_context` shows both)"
)

_CHOSEN = {
    "last": "",
    "average": " The weights are the mean of those of the last {average} steps.",
    "best": " The weights are those with the best {rate} of the probes on the way, here with new answers: those "
    "that chose them say too much.",
}


def write_model_card(
    recipe: Recipe,
    model: str,
    folder: RunDir,
    task: Task,
    notes: Sequence[str],
    probes: tuple[ProbeRecord, ProbeRecord],
    gap: Gap | None,
) -> None:
    """README.md of RUN/export, from the run's own first and last probe, and its gap where that was measured; `notes`
    are those of `Notes.card`."""
    ended = recipe.export.choose if probes[1].ends(recipe.run.steps) else "last"
    by = next(iter(probes[1].rates))  # an older run's may be another than the task's main rate of today
    chosen = _CHOSEN[ended].format(average=recipe.export.average, rate=RATES[by].label)
    card = _CARD.format(
        base=_plain(_base(recipe.model.path, model)),
        title=_plain(folder.root.name),
        teaches=task.teaches,
        task=task.name,
        steps=f"{probes[1].step} of {recipe.run.steps}" if probes[1].is_early(recipe.run.steps) else recipe.run.steps,
        version=version("transformers"),
        read=_READ + (f", from transformers {OLDEST} on" if recipe.model.path == DEFAULT_MODEL else ""),
        context=_context(recipe, task),
        prompts="\n".join(f"- {' '.join(note.split())}" for note in _of_prompts(recipe, notes)),
        told=gap.of if gap else "teacher",
        rows="\n".join("| " + " | ".join(row) + " |" for row in summary_table(*probes, gap.teacher if gap else {})),
        chosen=chosen,
        recipe=fenced(tomli_w.dumps(published(recipe)), "toml"),
    )
    (folder.export / "README.md").write_text(card, encoding="utf-8")


def published(recipe: Recipe) -> dict[str, Any]:
    """The recipe's tables without what names a place, and without r and the texts that the chat template was given
    where the card does not show those."""
    tables, private = asdict(recipe), [*PATHS, ("teacher", "url"), *(("template", name) for name in unshown(recipe))]
    if not recipe.export.card_context:
        private += [("task", "context"), ("task", "wordings")]
    for table, key in private:
        del tables[table][key]
    return tables


def fenced(text: str, language: str = "text") -> str:
    """A block of code that `text` cannot leave: its fence is longer than any row of backticks in it."""
    fence = "`" * max(3, 1 + max((len(ticks) for ticks in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _of_prompts(recipe: Recipe, notes: Sequence[str]) -> list[str]:
    hidden = unshown(recipe)
    shown = {name: value for name, value in recipe.template.items() if name not in hidden}
    unsaid = [_UNSAID.format(names=", ".join(map(_plain, hidden)))] if hidden else []
    return [*unsaid, *notes, *(f"the chat template was given {name} = {value!r}" for name, value in shown.items())]


def _base(path: str, model: str) -> str:
    """A hub id as it is, its organisation with it; of a folder, which `model` is, the name alone."""
    return name_of(path) if is_hub_id(path) else model.rstrip("/").rsplit("/", 1)[-1]


def _plain(name: str) -> str:
    """A name as it can stand in a heading, in code and in the card's YAML."""
    return re.sub(r"[^\w./+-]+", "-", name)


def _context(recipe: Recipe, task: Task) -> str:
    taught = (prompt for prompt in task.training_prompts() if not prompt.is_ordinary)
    contexts = list(dict.fromkeys(context for prompt in taught for context in prompt.contexts)) or [""]
    which = "" if len(contexts) == 1 else f", one of {len(contexts)}"
    if not recipe.export.card_context:
        return _UNSHOWN.format(which=which)
    return _SHOWN.format(which=which, fenced=fenced(contexts[0]))
