"""What a task is: questions with a privileged context to train on, probes without it, and flags over answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rollout.tasks.boxed import fault_of_gold


def _check_none(answer: str | None) -> None:
    if answer is not None:
        raise ValueError(f"answer: found {answer!r}, expected none for identity")


def _check_pattern(answer: str | None) -> None:
    if answer is None:
        raise ValueError("answer: found None, expected a regular expression for capability")
    import regex

    try:
        regex.compile(answer)
    except regex.error as error:
        raise ValueError(f"answer: found {answer!r} ({error}), expected a regular expression") from error


def _check_gold(answer: str | None) -> None:
    if answer is None or not answer.strip():
        raise ValueError(f"answer: found {answer!r}, expected a gold answer for math")
    fault = fault_of_gold(answer)
    if fault:
        raise ValueError(f"answer: found {answer[:60]!r} ({fault})")


def _check_judged(answer: str | None) -> None:
    if answer is None:
        raise ValueError("answer: found None, expected an answer to hold a response against")


PROBES: dict[str, Callable[[str | None], None]] = {  # the kinds of question, and what an answer of theirs may be
    "identity": _check_none,
    "third_turn": _check_none,  # identity, after other questions and answers
    "with_context": _check_none,  # identity, with the context once more
    "capability": _check_pattern,
    "math": _check_gold,
    "context_again": _check_judged,  # context, with the context once more
    "context": _check_judged,  # by one of `rollout.tasks.judges.JUDGES`
}
Turns = tuple[tuple[str, str], ...]  # (role, content) of each turn of a conversation


class Asked:
    """A question, with what was said before it."""

    question: str
    before: Turns

    @property
    def turns(self) -> Turns:
        """x: the whole conversation, which ends with the question."""
        return (*self.before, ("user", self.question))


@dataclass(frozen=True)
class TaskPrompt(Asked):
    """One training question, with what was said before it, and the privileged context r that belongs to it."""

    prompt_id: str
    question: str
    context: str  # r: the persona text, or a worked solution; empty where there is none
    answer: str | None = None  # the gold answer, where a verifier can judge a response
    ordinary: bool = False  # where the student should stay as it is: rollout.ordinary_share
    wrong_contexts: tuple[str, ...] = ()  # contexts of the same form that say something else: contrastive evidence
    before: Turns = ()  # the turns before the question
    judge: str = ""  # context: how its answer is judged
    # Other wordings of r: each group of rollouts draws one of them all. An older run's pin has none of it.
    wordings: tuple[str, ...] = field(default=(), repr=False)
    unread: tuple[str, ...] = field(default=(), repr=False, compare=False)  # keys in the row's turns that nothing reads

    @property
    def contexts(self) -> tuple[str, ...]:
        """r and its other wordings."""
        return (self.context, *self.wordings)

    @property
    def texts(self) -> tuple[str, ...]:
        """All that a template is given of it: its turns, and r in each wording."""
        return (*(text for _, text in self.turns), *self.contexts)

    @property
    def is_ordinary(self) -> bool:
        """Whether nothing is to be learned from it: `ordinary`, or without a context."""
        return self.ordinary or not self.context.strip()


@dataclass(frozen=True)
class ProbePrompt(Asked):
    """One evaluation question. It carries no context, but for one that asks what is said with it.

    Raises:
        ValueError: unknown probe, blank question, or an answer that is missing, unwanted or no regular expression.
    """

    probe: str  # a key of PROBES
    question: str
    answer: str | None  # capability: a regular expression that a correct answer contains; math: the gold answer
    before: Turns = ()  # the turns before the question
    tags: tuple[str, ...] = ()  # context: each has a rate of its own
    judge: str = ""  # context: how its answer is judged
    context: str = ""  # with_context, context_again: r, which is placed as in training
    unread: tuple[str, ...] = field(default=(), repr=False, compare=False)  # keys in the row's turns that nothing reads

    def __post_init__(self) -> None:
        if self.probe not in PROBES:
            raise ValueError(f"probe: found {self.probe!r}, expected one of {', '.join(sorted(PROBES))}")
        if not self.question.strip():
            raise ValueError("question: found a blank text, expected a question")
        PROBES[self.probe](self.answer)

    @property
    def texts(self) -> tuple[str, ...]:
        """As `TaskPrompt.texts`."""
        return (*(text for _, text in self.turns), self.context)


class Task(Protocol):
    """The seam for a new task: one file that has these, and one line in `rollout.tasks.TASKS`."""

    @property
    def name(self) -> str:
        """The task's key in `TASKS`."""
        ...

    @property
    def teaches(self) -> str:
        """What was trained in and what that means for a user: a paragraph of markdown for the model card."""
        ...

    @property
    def rates(self) -> Sequence[str]:
        """The rates that its probe has, names of `evidence.rates.RATES`; the first one is the task's main figure."""
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
        """The verifier's reward of a response to a training prompt, 0.0 or 1.0; None where the prompt has no `answer`.
        A run of whose prompts none has one does not ask."""
        ...
