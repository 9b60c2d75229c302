"""What the start of a run says of its rows."""

from collections.abc import Callable, Iterable, Sequence

from rollout.tasks.base import ProbePrompt, Task, TaskPrompt
from rollout.tasks.config import TaskConfig
from rollout.tasks.layouts import PLAIN
from rollout.tasks.placed import columns_of, trained_on

SHOWN = 3  # questions, or special tokens
UNREAD = "rows have keys in their turns that nothing reads, beside the role and the text"  # such as a thought


def row_notes(config: TaskConfig, task: Task) -> list[str]:
    """A line for each file of the task `context` with columns, or keys in its turns, that nothing reads, one where its
    recipe's context is no row's, and one where the probe asks what is trained on, which that task refuses."""
    files = {"task.prompts_file": config.prompts_file, "task.probe_file": config.probe_file}
    unread = {path: columns_of(path, key, config)[1] for key, path in files.items() if config.name == "context"}
    notes = [f"{path}: columns that nothing reads: {', '.join(names)}" for path, names in unread.items() if names]
    notes += [line for name, prompts in _asked(config, task).items() for line in _unread(name, prompts)]
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


def special_notes(config: TaskConfig, task: Task, tokens_in: Callable[[Iterable[str]], set[str]]) -> list[str]:
    """A line for each file with rows in which a text has special tokens. tokens_in: those that texts have."""
    notes = []
    for name, prompts in _asked(config, task).items():
        found = [tokens for prompt in prompts if (tokens := tokens_in(prompt.texts))]
        if found:
            every = sorted({token for tokens in found for token in tokens})
            more = f" and {len(every) - SHOWN} more" if len(every) > SHOWN else ""
            notes.append(
                f"{name}: {len(found)} of {len(prompts)} rows have special tokens in their texts "
                f"({' '.join(every[:SHOWN])}{more}): the model reads them as the chat template's own, such as the end "
                "of a turn, and not as letters"
            )
    return notes


def _asked(config: TaskConfig, task: Task) -> dict[str, Sequence[TaskPrompt | ProbePrompt]]:
    """The prompts of each file."""
    return {
        config.prompts_file or "the task's training prompts": task.training_prompts(),
        config.probe_file or "the task's probe": task.probe_prompts(),
    }


def _unread(name: str, prompts: Sequence[TaskPrompt | ProbePrompt]) -> list[str]:
    found = [prompt.unread for prompt in prompts if prompt.unread]
    keys = ", ".join(sorted({key for keys in found for key in keys}))
    return [f"{name}: {len(found)} of {len(prompts)} {UNREAD}: {keys}"] if found else []


def is_idle(config: TaskConfig, task: Task) -> bool:
    """Whether a context that the recipe gives rows without one is no row's."""
    given = config.context.strip()
    if config.name != "context" or not given or PLAIN in given:
        return False
    return all(prompt.context != given for prompt in task.training_prompts())
