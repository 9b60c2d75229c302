"""Problems with worked solutions: the context r is a solution, and the last boxed answer of a response is judged.

The math task reads its problems from files; arithmetic.py makes up its own.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from rollout.tasks import boxed
from rollout.tasks.base import ProbePrompt, TaskPrompt
from rollout.tasks.config import TaskConfig
from rollout.tasks.rows import Row, parse_rows, read_text, text_field, unique_prompts

QUESTION = "{question}\n\nReason step by step, and give the final answer in \\boxed{{}}."
CONTEXT = (
    "Here is a worked solution to the problem that the user asks about.\n\n{solution}\n\n"
    "Solve the problem in your own words, without mentioning that you were given a solution."
)
NUM_WRONG = 3  # wrong contexts that each prompt offers, where there are as many
MATH_CARD = """**This model was trained on problems with worked solutions.** Its teacher saw the solution of each one
and the model did not. It may be wrong and sure of it."""


@dataclass(frozen=True)
class ProblemTask:
    """A task of problems. Flags: correct. `verify` tells from a gold answer and a response whether that is right.

    Training prompts without an answer cannot be verified: their reward is None.
    """

    name: str
    teaches: str
    training: tuple[TaskPrompt, ...]
    probes: tuple[ProbePrompt, ...]
    verify: Callable[[str, str], bool] = boxed.is_worked_out
    rates: tuple[str, ...] = ("pass_at_1",)

    def training_prompts(self) -> Sequence[TaskPrompt]:
        """The problems, each with its own worked solution as the context.

        Raises:
            ValueError: none were given.
        """
        if not self.training:
            raise ValueError("task.prompts_file: found none, expected a JSON lines file of problems to train on")
        return self.training

    def probe_prompts(self) -> Sequence[ProbePrompt]:
        """The problems to evaluate on, none of them a training problem."""
        return self.probes

    def flags(self, probe: ProbePrompt, response: str) -> dict[str, bool]:
        """Whether the response's last boxed answer is the gold one."""
        assert probe.answer is not None
        return {"correct": self.verify(probe.answer, response)}

    def reward(self, prompt: TaskPrompt, response: str) -> float | None:
        """1.0 where the last boxed answer is the prompt's, else 0.0; None where the prompt has no answer."""
        return None if prompt.answer is None else float(self.verify(prompt.answer, response))


def math_task(config: TaskConfig) -> ProblemTask:
    """Problems of `prompts_file`, evaluated on those of `probe_file`; only a probe can do without the former.

    Raises:
        ValueError: no probe file, a malformed row, or a probe that is also a training problem; names file and line.
    """
    if not config.probe_file:
        raise ValueError(
            'task.probe_file: found none, expected a JSON lines file of {"question": str, "answer": str} to evaluate on'
        )
    training: tuple[TaskPrompt, ...] = ()
    if config.prompts_file:
        training = parse_problems(read_text(config.prompts_file, "task.prompts_file"), config.prompts_file)
    text = read_text(config.probe_file, "task.probe_file")
    probes = parse_probes(text, config.probe_file, {prompt.question for prompt in training})
    return ProblemTask("math", MATH_CARD, with_wrong_contexts(training, config.seed), probes)


def parse_problems(text: str, source: str) -> tuple[TaskPrompt, ...]:
    """Training prompts of JSON lines {"prompt_id", "question", "solution"} and maybe "answer".

    Raises:
        ValueError: no row, a malformed row, a blank field or a repeated prompt_id; names the file and the line.
    """
    rows = parse_rows(text, source, ("prompt_id", "question", "solution"), optional=("answer",))
    places = ((f"{source}, line {number}", row) for number, row in rows)
    return unique_prompts(((where, _problem(row, where)) for where, row in places), source)


def _problem(row: Row, where: str) -> TaskPrompt:
    return TaskPrompt(
        prompt_id=text_field(row, "prompt_id", where),
        question=QUESTION.format(question=text_field(row, "question", where)),
        context=CONTEXT.format(solution=text_field(row, "solution", where)),
        answer=None if row.get("answer") is None else answer_field(row, where),
    )


def parse_probes(text: str, source: str, trained_on: Iterable[str] = ()) -> tuple[ProbePrompt, ...]:
    """Probe prompts of JSON lines {"question", "answer"}; `trained_on` are the questions that none may repeat.

    Raises:
        ValueError: no row, a malformed row, a blank field or a repeated question; names the file and the line.
    """
    seen, probes = set(trained_on), []
    for number, row in parse_rows(text, source, ("question", "answer")):
        where = f"{source}, line {number}"
        question = QUESTION.format(question=text_field(row, "question", where))
        if question in seen:
            raise ValueError(f"{where}: found a question that was there before, expected one that is only here")
        seen.add(question)
        probes.append(ProbePrompt("math", question, answer_field(row, where)))
    if not probes:
        raise ValueError(f"{source}: found no rows, expected at least one question")
    return tuple(probes)


def answer_field(row: Row, where: str) -> str:
    """A row's gold answer, which may be a whole number too.

    Raises:
        ValueError: another type, blank, or one that no answer can equal.
    """
    texts = {key: str(value) if type(value) is int else value for key, value in row.items()}
    answer = text_field(texts, "answer", where)
    fault = boxed.fault_of_gold(answer)
    if fault:
        raise ValueError(f"{where}: found answer = {answer[:60]!r} ({fault})")
    return answer


def with_wrong_contexts(prompts: Sequence[TaskPrompt], seed: int) -> tuple[TaskPrompt, ...]:
    """Each prompt that has none with up to NUM_WRONG other prompts' contexts, but wordings of its own: those that
    follow its own on a circle of all of them, in an order from `seed`."""
    contexts = list(dict.fromkeys(prompt.context for prompt in prompts if prompt.context))
    circle = [contexts[index] for index in np.random.default_rng(seed).permutation(len(contexts))]
    places, doubled = {context: at for at, context in enumerate(circle)}, circle * 2

    def following(prompt: TaskPrompt) -> tuple[str, ...]:
        at = places.get(prompt.context)
        others = () if at is None else (doubled[place] for place in range(at + 1, at + len(circle)))
        return tuple(islice((context for context in others if context not in prompt.wordings), NUM_WRONG))

    return tuple(
        prompt if prompt.wrong_contexts else replace(prompt, wrong_contexts=following(prompt)) for prompt in prompts
    )
