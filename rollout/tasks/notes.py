"""What the start of a run says of its rows."""

from rollout.tasks.base import Task
from rollout.tasks.config import TaskConfig
from rollout.tasks.placed import columns_of, trained_on

SHOWN = 3  # questions


def row_notes(config: TaskConfig, task: Task) -> list[str]:
    """A line for each file of the task `context` with columns that nothing reads, and one where the probe asks what is
    trained on, which that task refuses."""
    files = {"task.prompts_file": config.prompts_file, "task.probe_file": config.probe_file}
    unread = {path: columns_of(path, key, config)[1] for key, path in files.items() if config.name == "context"}
    notes = [f"{path}: columns that nothing reads: {', '.join(names)}" for path, names in unread.items() if names]
    asked = [probe for probe in task.probe_prompts() if not probe.context]  # with it nothing is asked of a memory
    repeated = trained_on(task.training_prompts(), asked)
    questions = [repr(question[:60]) for question in dict.fromkeys(probe.question for probe in repeated)]
    if not questions:
        return notes
    more = f" and {len(questions) - SHOWN} more" if len(questions) > SHOWN else ""
    listed = ", ".join(questions[:SHOWN])
    return [*notes, f"the probe asks what is trained on, so that it measures memory there: {listed}{more}"]
