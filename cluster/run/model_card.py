"""The exported model's card: what was trained in, how it was made, and what its probes say."""

from collections.abc import Sequence

from cluster.config import Recipe, dump
from cluster.observe.sinks import summary_table
from cluster.run.record import ProbeRecord
from cluster.run.rundir import RunDir
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

| figure | before | after | answers |
|---|---|---|---|
{rows}

Answers are sampled without the context; brackets are 95% Wilson intervals.

## Recipe

```toml
{recipe}```
"""


def write_model_card(
    recipe: Recipe,
    model: str,
    folder: RunDir,
    task: Task,
    notes: Sequence[str],
    first: ProbeRecord,
    last: ProbeRecord,
) -> None:
    """README.md of RUN/export, from the run's own first and last probe; `notes` are what is worth knowing of its
    prompts, such as what the chat template says in them itself."""
    given = [f"the chat template was given {name} = {value!r}" for name, value in recipe.template.items()]
    contexts = list(dict.fromkeys(prompt.context for prompt in task.training_prompts()))
    card = _CARD.format(
        base=model.rstrip("/").rsplit("/", 1)[-1],
        title=folder.root.name,
        teaches=task.teaches,
        task=task.name,
        steps=recipe.run.steps,
        which="" if len(contexts) == 1 else f", one of {len(contexts)}",
        context=contexts[0],
        prompts="\n".join(f"- {note}" for note in [*notes, *given]),
        rows="\n".join("| " + " | ".join(row) + " |" for row in summary_table(first, last)),
        recipe=dump(recipe),
    )
    (folder.export / "README.md").write_text(card)
