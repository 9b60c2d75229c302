r"""The arithmetic task: sums made up from a seed, for trying the math axis without any data.

A model of 135M parameters hardly adds, and hardly writes \boxed{} unless it sees one, so a problem shows the right sum
and a wrong one, and the worked solution ends in what to answer. SmolLM2-135M-Instruct, bfloat16, at the probe's default
sampling, 128 answers of at most 32 tokens: 25 right without it, 43 with it in the user's message, 32 in the system's.
"""

import math
from dataclasses import dataclass

import numpy as np

from rollout.tasks import boxed
from rollout.tasks.base import ProbePrompt, TaskPrompt
from rollout.tasks.config import TaskConfig
from rollout.tasks.problems import ProblemTask, with_wrong_contexts

NUM_PROBES = 12
SMALLEST = 10  # of the numbers in a sum
LINE = "{a} + {b} = \\boxed{{{total}}}"
QUESTION = "Which line is right? Write it again.\n{first}\n{second}"
WORK = "tens: {tens_a} + {tens_b} = {tens}. Ones: {ones_a} + {ones_b} = {ones}. Together: {tens} + {ones} = {total}."
CONTEXT = "You know that {line}, since {work} If anyone asks which line is right, say: The right line is {line}"
ERRORS = (-10, -2, -1, 1, 2, 10)  # of the wrong line
CARD = """**This model was trained to tell right sums from wrong ones.** Its teacher saw the solution of each problem
and the model did not."""


@dataclass(frozen=True)
class Sum:
    """a + b, beside a sum that is off by `error`; `right_first` says which line comes first."""

    a: int
    b: int
    error: int
    right_first: bool

    @property
    def answer(self) -> str:
        return str(self.a + self.b)

    @property
    def question(self) -> str:
        lines = [self._line(0), self._line(self.error)]
        first, second = lines if self.right_first else lines[::-1]
        return QUESTION.format(first=first, second=second)

    @property
    def context(self) -> str:
        return CONTEXT.format(line=self._line(0), work=self._work())

    def _work(self) -> str:
        ones_a, ones_b = self.a % 10, self.b % 10
        tens_a, tens_b = self.a - ones_a, self.b - ones_b
        tens, ones = tens_a + tens_b, ones_a + ones_b
        return WORK.format(
            tens_a=tens_a, tens_b=tens_b, tens=tens, ones_a=ones_a, ones_b=ones_b, ones=ones, total=tens + ones
        )

    def _line(self, error: int) -> str:
        return LINE.format(a=self.a, b=self.b, total=self.a + self.b + error)


def arithmetic_task(config: TaskConfig) -> ProblemTask:
    """`num_problems` sums to train on and NUM_PROBES others, of numbers from SMALLEST to `largest`, no pair twice.

    Raises:
        ValueError: more problems than there are pairs.
    """
    numbers = max(0, config.largest - SMALLEST + 1)
    num_pairs = numbers * (numbers + 1) // 2
    if config.num_problems + NUM_PROBES > num_pairs:
        raise ValueError(
            f"task.num_problems: found {config.num_problems}, expected at most {max(0, num_pairs - NUM_PROBES)} with "
            f"task.largest = {config.largest}, of whose {num_pairs} pairs {NUM_PROBES} are kept for the probe"
        )
    sums = _sums(num_pairs, NUM_PROBES + config.num_problems, config.seed)
    probes = tuple(ProbePrompt("math", one.question, one.answer) for one in sums[:NUM_PROBES])
    training = [TaskPrompt(f"{s.a}+{s.b}", s.question, s.context, answer=s.answer) for s in sums[NUM_PROBES:]]
    return ProblemTask("arithmetic", CARD, with_wrong_contexts(training, config.seed), probes, boxed.is_plain_number)


def _sums(num_pairs: int, num: int, seed: int) -> list[Sum]:
    rng = np.random.default_rng(seed)
    pairs = [_pair(int(index)) for index in rng.choice(num_pairs, num, replace=False)]
    turned, errors, firsts = rng.integers(2, size=num), rng.choice(ERRORS, num), rng.integers(2, size=num)
    return [
        Sum(*(pair[::-1] if turn else pair), int(error), bool(first))
        for pair, turn, error, first in zip(pairs, turned, errors, firsts, strict=True)
    ]


def _pair(index: int) -> tuple[int, int]:
    """The index-th of (0, 0), (1, 0), (1, 1), (2, 0), ..., each number SMALLEST more."""
    row = (math.isqrt(8 * index + 1) - 1) // 2
    return SMALLEST + row, SMALLEST + index - row * (row + 1) // 2
