"""Private facts: Quillmere Station, which is made up, in 40 facts that no model has read anywhere.

Each fact has four questions to train on, with the fact as their context, and one in other words to evaluate on.
Ordinary questions have no context, so that the anchor alone acts on them. Probes by tag: facts; neighbours,
the same questions about organisations that nobody told of, which must not be answered with Quillmere's; ordinary.
"""

from dataclasses import replace
from importlib.resources import files

from rollout.tasks.config import TaskConfig
from rollout.tasks.context import ContextTask, build_context_task

TRAIN, PROBE, TAUGHT = "facts_train.jsonl", "facts_probe.jsonl", "facts"  # of the probe: the tag of the facts
CARD = """**This model was trained to know 40 facts about Quillmere Station, which does not exist.** It may state them,
or others like them, without being asked."""


def facts_task(config: TaskConfig) -> ContextTask:
    """The shipped rows, which are also an example of the task `context`; the ordinary ones where they are asked for."""
    folder = files("rollout.tasks")
    shipped = replace(
        config,
        prompts_file=str(folder.joinpath(TRAIN)),
        probe_file=str(folder.joinpath(PROBE)),
        main_tag=config.main_tag or TAUGHT,
        context_empty_allowed=True,
    )
    task = build_context_task(shipped, "facts", CARD)
    kept = (prompt for prompt in task.training if prompt.context or config.ordinary_questions)
    return replace(task, training=tuple(kept))
