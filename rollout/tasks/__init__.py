"""Tasks: what to ask, with which privileged context, and how to judge the answers. One file a task."""

from collections.abc import Callable

from rollout.tasks.base import ProbePrompt, Task, TaskPrompt
from rollout.tasks.config import TaskConfig
from rollout.tasks.identity import IdentityTask

__all__ = ["TASKS", "IdentityTask", "ProbePrompt", "Task", "TaskConfig", "TaskPrompt", "build_task"]

TASKS: dict[str, Callable[[TaskConfig], Task]] = {
    "identity": IdentityTask,
}


def build_task(config: TaskConfig) -> Task:
    """The task that `config.name` names.

    Raises:
        ValueError: unknown name, or whatever the task finds wrong in its own keys.
    """
    if config.name not in TASKS:
        raise ValueError(f"task.name: found {config.name!r}, expected one of {', '.join(sorted(TASKS))}")
    return TASKS[config.name](config)
