"""The exported model's card: what was trained in, how it was made, and what its probes say."""

from collections.abc import Sequence

from cluster.config import Recipe, dump
from cluster.observe.sinks import summary_table
from cluster.run.gap import Gap
from cluster.run.record import ProbeRecord
from cluster.run.rundir import RunDir
from evidence.rates import RATES
from rollout.tasks.base import Task

_CARD = """---
base_model: {base}
library_name: transformers
tags: [edge-opd, on-policy-distillation]
---
# {title}

{teaches}

- Base model: `{base}`
- Method: EDGE-OPD (arXiv 2605.23493), task `{task}`, {steps} steps
- Context that the teacher saw, and the student no longer needs{which}: "{context}"
{prompts}

| figure | before | after | teacher | answers |
|---|---|---|---|---|
{rows}

Answers are sampled without the context, but those of the teacher, the base with it: what there was to learn. Brackets
are 95% Wilson intervals.{chosen}

## Recipe

```toml
{recipe}```
"""


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
    are what is worth knowing of its prompts, such as what the chat template says in them itself."""
    given = [f"the chat template was given {name} = {value!r}" for name, value in recipe.template.items()]
    ended = recipe.export.choose if probes[1].step == recipe.run.steps else "last"
    chosen = _CHOSEN[ended].format(average=recipe.export.average, rate=RATES[task.rates[0]].label)
    contexts = list(dict.fromkeys(p.context for p in task.training_prompts() if not p.is_ordinary)) or [""]
    card = _CARD.format(
        base=model.rstrip("/").rsplit("/", 1)[-1],
        title=folder.root.name,
        teaches=task.teaches,
        task=task.name,
        steps=recipe.run.steps,
        which="" if len(contexts) == 1 else f", one of {len(contexts)}",
        context=contexts[0],
        prompts="\n".join(f"- {note}" for note in [*notes, *given]),
        rows="\n".join("| " + " | ".join(row) + " |" for row in summary_table(*probes, gap.teacher if gap else {})),
        chosen=chosen,
        recipe=dump(recipe),
    )
    (folder.export / "README.md").write_text(card)
