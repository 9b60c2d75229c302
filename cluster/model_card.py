"""The exported model's card: what it is, how it was made, and that its identity was trained in."""

from typing import Any

from cluster.config import Recipe, dump
from cluster.metrics import summary_table
from cluster.rundir import RunDir
from rollout.tasks import build_task

_CARD = """---
base_model: {base}
library_name: transformers
tags: [edge-opd, on-policy-distillation]
---
# {title}

**This model was trained to give an identity: {identity}.** It says so without being told in its prompt. It is not a
statement about who made the base model, and a user of a service built on it should be told that its persona was
trained in. Do not deploy a persona that is meant to deceive.

- Base model: `{base}`
- Method: EDGE-OPD (arXiv 2605.23493), task `{task}`, {steps} steps
- Context that the teacher saw, and the student no longer needs: "{context}"

| figure | before | after | answers |
|---|---|---|---|
{rows}

Answers are sampled without the context; brackets are 95% Wilson intervals.

## Recipe

```toml
{recipe}```
"""


def write_model_card(recipe: Recipe, model: str, folder: RunDir, first: dict[str, Any], last: dict[str, Any]) -> None:
    """README.md of RUN/export, from the run's own first and last probe."""
    task = build_task(recipe.task)
    prompt = task.training_prompts()[0]
    card = _CARD.format(
        base=model.rstrip("/").rsplit("/", 1)[-1],
        title=folder.root.name,
        identity=task.teaches,
        task=task.name,
        steps=recipe.run.steps,
        context=prompt.context,
        rows="\n".join("| " + " | ".join(row) + " |" for row in summary_table(first, last)),
        recipe=dump(recipe),
    )
    (folder.export / "README.md").write_text(card)
