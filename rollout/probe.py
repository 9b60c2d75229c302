"""Probes: rates over answers to questions that carry no context. Pure; sampling happens elsewhere."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from evidence.intervals import wilson
from evidence.rates import RATES, RateRule
from evidence.require import require
from rollout.config import TEMPERATURES, SamplingConfig
from rollout.tasks.base import ProbePrompt, Task


@dataclass(frozen=True)
class ProbeConfig:
    """How a probe (the evaluation) samples; the defaults are the paper's.

    Raises:
        ValueError: a value outside its range.
    """

    samples: int = 4  # answers to each question
    temperature: float = 1.0  # 0: greedy
    top_p: float = 0.95  # samples from the likeliest tokens that have this much probability together
    top_k: int = 20  # samples from this many of the likeliest tokens; 0: from the whole vocabulary
    max_tokens: int = 64  # a longer answer is cut there
    gap: bool = True  # asks the teacher, with the context, before step 1: what there is to learn
    require: float = 0.0  # the run exits 1 when the task's main rate of the last probe is lower
    # as require, a share of the teacher's main rate in the gap; rows with contexts of their own (context, facts, math)
    # are asked training questions there
    require_of_teacher: float = 0.0
    # early stopping: the run ends, as after its last step, once so many probes in a row had no higher main rate than
    # the best before them; that of step 0 does not count. 0: it takes all of run.steps. learner.lr_schedule falls over
    # all of run.steps, so that the rate has not come to its end then
    patience: int = 0
    min_delta: float = 0.0  # with patience: only a rate that is higher than the best before by more than this has risen

    def __post_init__(self) -> None:
        require(self.samples >= 1, "probe.samples", self.samples, "at least 1")
        low, high = TEMPERATURES
        sampled = low <= self.temperature <= high
        require(
            sampled or self.temperature == 0, "probe.temperature", self.temperature, f"0 (greedy), or {low} to {high}"
        )
        expected = "1 with probe.temperature = 0, which gives the same answer each time"
        require(sampled or self.samples == 1, "probe.samples", self.samples, expected)
        require(0 < self.top_p <= 1, "probe.top_p", self.top_p, "more than 0, at most 1")
        require(self.top_k >= 0, "probe.top_k", self.top_k, "0 (all) or more")
        require(0 <= self.require <= 1, "probe.require", self.require, "0 to 1")
        share = self.require_of_teacher
        require(0 <= share < math.inf, "probe.require_of_teacher", share, "0 or more, a share of the teacher's rate")
        expected = "0.0 with probe.gap = false: the teacher's rate is not measured"
        require(self.gap or share == 0, "probe.require_of_teacher", share, expected)
        require(self.max_tokens >= 1, "probe.max_tokens", self.max_tokens, "at least 1")
        require(self.patience >= 0, "probe.patience", self.patience, "0 (all steps) or more probes")
        require(0 <= self.min_delta < 1, "probe.min_delta", self.min_delta, "0 to below 1")
        expected = "0.0 with probe.patience = 0, which stops nothing"
        require(self.patience > 0 or self.min_delta == 0, "probe.min_delta", self.min_delta, expected)

    def sampling(self, end_ids: tuple[int, ...], keeps_special: bool) -> SamplingConfig:
        """Of answers to a renderer's prompts: its `eos_token_ids` and `keeps_special`."""
        return SamplingConfig(self.temperature, self.max_tokens, self.top_p, self.top_k, end_ids, keeps_special)


@dataclass(frozen=True)
class Rate:
    """k answers of n have the flag."""

    k: int
    n: int

    @property
    def share(self) -> float:
        """k / n, from 0 to 1; 0 over no answers."""
        return self.k / self.n if self.n else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% Wilson interval of the share, as if all answers were independent; (0, 1) over no answers."""
        return wilson(self.k, self.n)


@dataclass(frozen=True)
class ProbeResult:
    """A task's rates, the main one first, and how often each question that the main one is of was asked."""

    rates: dict[str, Rate]
    questions: int
    samples: int


def summarise(answers: Sequence[tuple[ProbePrompt, str]], task: Task) -> ProbeResult:
    """The rates of a task over (probe prompt, response text) pairs, in any order.

    Every question of a probe has the same number of answers, so that a share of the answers is also the mean over
    questions of each one's share: pass@1 (arXiv 2107.03374, with k = 1).

    Raises:
        ValueError: no answers at all, or more of them to one question of a probe than to another.
    """
    if not answers:
        raise ValueError("probe: found no answers, expected at least one")
    for probe in {prompt.probe for prompt, _ in answers}:
        _check_even([count for prompt, count in _asked(answers).items() if prompt.probe == probe])
    return summarise_so_far(answers, task)


def summarise_so_far(answers: Sequence[tuple[ProbePrompt, str]], task: Task) -> ProbeResult:
    """`summarise` over what there is of a probe: any answers or none. `samples` is the fewest to one question."""
    flagged = [(prompt, task.flags(prompt, text)) for prompt, text in answers]
    rates = {name: _rate(flagged, RATES[name]) for name in task.rates}
    main = RATES[task.rates[0]]
    counts = [count for prompt, count in _asked(answers).items() if main.covers(prompt.probe, prompt.tags)]
    return ProbeResult(rates, len(counts), min(counts, default=0))


def _asked(answers: Sequence[tuple[ProbePrompt, str]]) -> Counter[ProbePrompt]:
    return Counter(prompt for prompt, _ in answers)


def _check_even(counts: Sequence[int]) -> None:
    if len(set(counts)) != 1:
        raise ValueError(
            f"probe: found {min(counts)} answers to one question and {max(counts)} to another, expected as many to each"
        )


def _rate(flagged: Sequence[tuple[ProbePrompt, dict[str, bool]]], rule: RateRule) -> Rate:
    found = [flags[rule.flag] for prompt, flags in flagged if rule.covers(prompt.probe, prompt.tags)]
    return Rate(sum(found), len(found))
