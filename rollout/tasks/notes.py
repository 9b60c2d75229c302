"""What the start of a run says of its rows."""

from collections.abc import Callable, Iterable, Sequence

from rollout.tasks.base import ProbePrompt, Task, TaskPrompt
from rollout.tasks.config import TaskConfig
from rollout.tasks.layouts import PLAIN
from rollout.tasks.placed import columns_of, trained_on

SHOWN = 3  # questions, or special tokens
SENTENCE = 8  # words of an answer, beyond which a response that is right seldom has them all in their order
SAID_WHOLE = f"rows have an answer of more than {SENTENCE} words, which is right only where it is said word for word"
UNREAD = "rows have keys in their turns that nothing reads, beside the role and the text"  # such as a thought


def row_notes(config: TaskConfig, task: Task) -> list[str]:
    """A line for each file of the task `context` with columns, or keys in its turns, that nothing reads, and with
    answers that are sentences; one where its recipe's context is no row's, and one where the probe asks what is
    trained on, which that task refuses."""
    files = {"task.prompts_file": config.prompts_file, "task.probe_file": config.probe_file}
    unread = {path: columns_of(path, key, config)[1] for key, path in files.items() if config.name == "context"}
    notes = [f"{path}: columns that nothing reads: {', '.join(names)}" for path, names in unread.items() if names]
    notes += [line for name, prompts in _asked(config, task).items() for line in _of_rows(name, prompts)]
    notes += idle_note(config, task.training_prompts())
    repeated = trained_on(task.training_prompts(), _own_probes(task))
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
        config.probe_file or "the task's probe": _own_probes(task),
    }


def _own_probes(task: Task) -> list[ProbePrompt]:
    """Without those that ask a training question again with its context: of the other file, and of no memory."""
    return [probe for probe in task.probe_prompts() if not probe.context]


def _of_rows(name: str, prompts: Sequence[TaskPrompt | ProbePrompt]) -> list[str]:
    found = [prompt.unread for prompt in prompts if prompt.unread]
    keys = ", ".join(sorted({key for keys in found for key in keys}))
    notes = [f"{name}: {len(found)} of {len(prompts)} {UNREAD}: {keys}"] if found else []
    whole = sum(bool(sentence_of(prompt)) for prompt in prompts)
    return [*notes, f"{name}: {whole} of {len(prompts)} {SAID_WHOLE}"] if whole else notes


def sentence_of(prompt: TaskPrompt | ProbePrompt) -> str:
    """How its answer begins, where that is a text of many words."""
    words = (prompt.answer or "").split() if prompt.judge == "text" else []
    return f"{' '.join(words[:4])} ..." if len(words) > SENTENCE else ""


def idle_note(config: TaskConfig, prompts: Sequence[TaskPrompt]) -> list[str]:
    """A line where a context that the recipe gives rows without one is no row's."""
    given = config.context.strip()
    idle = config.name == "context" and given and PLAIN not in given
    if not idle or any(prompt.context == given for prompt in prompts):
        return []
    return ["task.context: no row takes it, each has its own; with {context} in it, it is the frame around each"]
