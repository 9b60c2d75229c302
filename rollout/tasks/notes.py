"""What the start of a run says of its rows."""

from rollout.tasks.base import Task
from rollout.tasks.placed import trained_on

SHOWN = 3  # questions


def row_notes(task: Task) -> list[str]:
    """A line where the probe asks what is trained on, which the task `context` refuses."""
    repeated = trained_on(task.training_prompts(), task.probe_prompts())
    questions = [repr(question[:60]) for question in dict.fromkeys(probe.question for probe in repeated)]
    if not questions:
        return []
    more = f" and {len(questions) - SHOWN} more" if len(questions) > SHOWN else ""
    listed = ", ".join(questions[:SHOWN])
    return [f"the probe asks what is trained on, so that it measures memory there: {listed}{more}"]
