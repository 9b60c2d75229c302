"""What the start of a run says of its rows."""

from rollout.tasks.base import Task
from rollout.tasks.config import TaskConfig
from rollout.tasks.layouts import PLAIN
from rollout.tasks.placed import columns_of, trained_on

SHOWN = 3  # questions


def row_notes(config: TaskConfig, task: Task) -> list[str]:
    """A line for each file of the task `context` with columns that nothing reads, one where its recipe's context is no
    row's, and one where the probe asks what is trained on, which that task refuses."""
    files = {"task.prompts_file": config.prompts_file, "task.probe_file": config.probe_file}
    unread = {path: columns_of(path, key, config)[1] for key, path in files.items() if config.name == "context"}
    notes = [f"{path}: columns that nothing reads: {', '.join(names)}" for path, names in unread.items() if names]
    if is_idle(config, task):
        notes.append(
            "task.context: no row takes it, each has its own; with {context} in it, it is the frame around each"
        )
    asked = [probe for probe in task.probe_prompts() if not probe.context]  # with it nothing is asked of a memory
    repeated = trained_on(task.training_prompts(), asked)
    questions = [repr(question[:60]) for question in dict.fromkeys(probe.question for probe in repeated)]
    if not questions:
        return notes
    more = f" and {len(questions) - SHOWN} more" if len(questions) > SHOWN else ""
    listed = ", ".join(questions[:SHOWN])
    return [*notes, f"the probe asks what is trained on, so that it measures memory there: {listed}{more}"]


def is_idle(config: TaskConfig, task: Task) -> bool:
    """Whether a context that the recipe gives rows without one is no row's."""
    given = config.context.strip()
    if config.name != "context" or not given or PLAIN in given:
        return False
    return all(prompt.context != given for prompt in task.training_prompts())
