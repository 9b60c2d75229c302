"""What a task is: questions with a privileged context to train on, probes without it, and flags over answers."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

PROBES = frozenset({"identity", "capability"})


@dataclass(frozen=True)
class TaskPrompt:
    """One training question and the privileged context r that belongs to it."""

    prompt_id: str
    question: str
    context: str  # r: the persona text, or a worked solution; empty only where the task's config allows it
    answer: str | None = None  # what `Task.reward` compares a response with, where the task has a verifier
    wrong_contexts: tuple[str, ...] = ()  # other prompts' or personas' contexts, for contrastive evidence


@dataclass(frozen=True)
class ProbePrompt:
    """One evaluation question. It never carries a context.

    Raises:
        ValueError: unknown probe, blank question, or an answer that is missing, unwanted or no regular expression.
    """

    probe: str  # "identity" or "capability"
    question: str
    answer: str | None  # a regular expression that a correct answer contains; None for identity

    def __post_init__(self) -> None:
        if self.probe not in PROBES:
            raise ValueError(f"probe: found {self.probe!r}, expected one of {', '.join(sorted(PROBES))}")
        if not self.question.strip():
            raise ValueError("question: found a blank text, expected a question")
        if (self.answer is None) != (self.probe == "identity"):
            raise ValueError(f"answer: found {self.answer!r}, expected a pattern for capability, none for identity")
        try:
            re.compile(self.answer or "")
        except re.error as error:
            raise ValueError(f"answer: found {self.answer!r} ({error}), expected a regular expression") from error


class Task(Protocol):
    """The seam for a new task: one file that has these, and one line in `rollout.tasks.TASKS`."""

    @property
    def name(self) -> str:
        """The task's key in `TASKS`."""
        ...

    @property
    def teaches(self) -> str:
        """What a trained model will say or do, in a few words for its model card."""
        ...

    def training_prompts(self) -> Sequence[TaskPrompt]:
        """The questions to roll out, each with its context."""
        ...

    def probe_prompts(self) -> Sequence[ProbePrompt]:
        """The questions to evaluate on, without a context."""
        ...

    def flags(self, probe: ProbePrompt, response: str) -> dict[str, bool]:
        """What one response shows: a fixed set of keys for each `probe.probe`."""
        ...

    def reward(self, prompt: TaskPrompt, response: str) -> float | None:
        """The verifier's reward of a response to a training prompt; None where the task has no verifier."""
        ...
