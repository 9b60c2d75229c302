"""Tasks: what to ask, with which privileged context, and how to judge the answers. One file a task."""

from collections.abc import Callable
from dataclasses import dataclass, fields

from rollout.tasks.arithmetic import arithmetic_task
from rollout.tasks.base import ProbePrompt, Task, TaskPrompt
from rollout.tasks.config import TaskConfig
from rollout.tasks.context import context_task
from rollout.tasks.facts import facts_task
from rollout.tasks.identity import IdentityTask
from rollout.tasks.problems import math_task

__all__ = ["TASKS", "IdentityTask", "ProbePrompt", "Task", "TaskConfig", "TaskKind", "TaskPrompt", "build_task"]


@dataclass(frozen=True)
class TaskKind:
    """How a task is built, and the keys of `[task]` that it reads beside its name."""

    build: Callable[[TaskConfig], Task]
    reads: tuple[str, ...]


TASKS = {
    "identity": TaskKind(
        IdentityTask,
        (
            "persona",
            "persona_name",
            "maker",
            "counter_names",
            "context",
            "context_empty_allowed",
            "wordings",
            "prompts_file",
            "ordinary_questions",
            "chat_probes",
            "ordinary_file",
            "ordinary_context",
        ),
    ),
    "math": TaskKind(math_task, ("prompts_file", "probe_file", "seed")),
    "arithmetic": TaskKind(arithmetic_task, ("num_problems", "largest", "seed")),
    "context": TaskKind(
        context_task,
        (
            "prompts_file",
            "probe_file",
            "main_tag",
            "columns",
            "context",
            "context_empty_allowed",
            "judge",
            "chat_probes",
            "seed",
        ),
    ),
    "facts": TaskKind(facts_task, ("main_tag", "ordinary_questions", "chat_probes", "seed")),
}


def build_task(config: TaskConfig) -> Task:
    """The task that `config.name` names.

    Raises:
        ValueError: unknown name, a key that the task does not read, or whatever the task finds wrong in its own keys.
    """
    if config.name not in TASKS:
        raise ValueError(f"task.name: found {config.name!r}, expected one of {', '.join(sorted(TASKS))}")
    kind = TASKS[config.name]
    for key in fields(config):
        value = getattr(config, key.name)
        if value != key.default and key.name not in ("name", *kind.reads):
            raise ValueError(
                f"task.{key.name}: found {value!r}, expected it left out: "
                f"the task {config.name} reads only {', '.join(kind.reads)}"
            )
    return kind.build(config)
