"""Any privileged context: rows of one's own, each with its own r, and probes that are judged by their answers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from evidence.require import require
from rollout.gap import gap_questions
from rollout.tasks.base import ProbePrompt, TaskPrompt, Turns
from rollout.tasks.config import TaskConfig
from rollout.tasks.context_rows import RowReader
from rollout.tasks.judges import JUDGES
from rollout.tasks.placed import Placed, all_of, check_columns, once, placed_rows
from rollout.tasks.problems import with_wrong_contexts

CARD = """**This model was trained to answer without the texts that its teacher saw.** What they said is in its weights
and may come out in any answer, also where it is wrong or out of place."""


@dataclass(frozen=True)
class ContextTask:
    """A task of rows. Flags: correct, as the row's judge says. The rates are those of all probes and of each tag.
    main_tag: of the questions that the main rate is of; empty: it is of all."""

    name: str
    teaches: str
    training: tuple[TaskPrompt, ...]
    probes: tuple[ProbePrompt, ...]
    main_tag: str = ""

    @property
    def rates(self) -> Sequence[str]:
        """correct, correct:TAG for each tag in the probe file's order, and that of the questions with their context.
        That of `main_tag` is the first."""
        tags = dict.fromkeys(tag for probe in self.probes for tag in probe.tags)
        again = ("correct_with_context",) if any(probe.context for probe in self.probes) else ()
        named = ["correct", *(f"correct:{tag}" for tag in tags), *again]
        return tuple(dict.fromkeys([f"correct:{self.main_tag}", *named] if self.main_tag else named))

    def training_prompts(self) -> Sequence[TaskPrompt]:
        """The rows to train on.

        Raises:
            ValueError: no file of them was given.
        """
        if not self.training:
            raise ValueError("task.prompts_file: found none, expected JSON lines or parquet of rows to train on")
        return self.training

    def probe_prompts(self) -> Sequence[ProbePrompt]:
        """The rows to evaluate on, none of them a training row; with `chat_probes` the gap's questions again too."""
        return self.probes

    def flags(self, probe: ProbePrompt, response: str) -> dict[str, bool]:
        """Whether the probe's judge accepts the response."""
        assert probe.answer is not None
        return {"correct": JUDGES[probe.judge].accepts(probe.answer, response)}

    def reward(self, prompt: TaskPrompt, response: str) -> float | None:
        """1.0 where the row's judge accepts the response, else 0.0; None where the row has no answer."""
        return None if prompt.answer is None else float(JUDGES[prompt.judge].accepts(prompt.answer, response))


def context_task(config: TaskConfig) -> ContextTask:
    """The rows of `prompts_file`, evaluated on those of `probe_file`; only a probe can do without the former.

    Raises:
        ValueError: no probe file, the first row that is none, or a column that no row has; names the file and the row.
    """
    return build_context_task(config, "context", CARD)


def build_context_task(config: TaskConfig, name: str, card: str) -> ContextTask:
    """`context_task`, under another name."""
    if not config.probe_file:
        raise ValueError(
            "task.probe_file: found none, expected JSON lines or parquet of rows with an answer to evaluate on"
        )
    asked: dict[Turns, str] = {}
    training: tuple[TaskPrompt, ...] = ()
    if config.prompts_file:
        training = all_of(training_rows(config, asked), config.prompts_file, "row to train on")
    probes = all_of(probe_rows(config, asked), config.probe_file, "row to evaluate on")
    check_columns(config)
    check_main_tag(config, probes)
    task = ContextTask(name, card, with_wrong_contexts(training, config.seed), probes, config.main_tag)
    return asking_again(task) if config.chat_probes and training else task


def check_main_tag(config: TaskConfig, probes: Sequence[ProbePrompt]) -> None:
    """ValueError for a main rate that would be over no question."""
    tags = sorted({tag for probe in probes for tag in probe.tags})
    expected = f"a tag of {config.probe_file}: {', '.join(tags) or 'its rows have none'}"
    require(not config.main_tag or config.main_tag in tags, "task.main_tag", config.main_tag, expected)


def asking_again(task: ContextTask) -> ContextTask:
    """Does what was learned hold where the context comes again (arXiv 2606.11627)? ValueError where none is."""
    again = [replace(probe, probe="context_again", context=context) for probe, context in gap_questions(task)]
    expected = "false, or a training row with an answer, whose question is asked again"
    require(bool(again), "task.chat_probes", True, expected)
    return replace(task, probes=(*task.probes, *again))


def training_rows(config: TaskConfig, asked: dict[Turns, str]) -> Iterator[Placed[TaskPrompt]]:
    """Every row of `prompts_file` with its place; `asked` is filled with the place of each conversation."""
    return once(placed_rows(config.prompts_file, "task.prompts_file", config, RowReader.training), {}, asked)


def probe_rows(config: TaskConfig, asked: dict[Turns, str]) -> Iterator[Placed[ProbePrompt]]:
    """Every row of `probe_file` with its place; what `asked` has, training or an earlier row, is a fault."""
    return once(placed_rows(config.probe_file, "task.probe_file", config, RowReader.probe), {}, asked)
