"""Probes: rates over answers to questions that carry no context. Pure; sampling happens elsewhere."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from evidence.intervals import wilson
from rollout.tasks.base import ProbePrompt, Task


@dataclass(frozen=True)
class ProbeConfig:
    """How a probe samples; the paper's evaluation settings.

    Raises:
        ValueError: a value outside its range.
    """

    samples: int = 4  # answers to each question
    temperature: float = 1.0
    top_p: float = 0.95
    top_k: int = 20  # 0: the whole vocabulary
    max_tokens: int = 64

    def __post_init__(self) -> None:
        _require(self.samples >= 1, "samples", self.samples, "at least 1")
        _require(0 <= self.temperature < math.inf, "temperature", self.temperature, "0 (greedy) or more")
        _require(0 < self.top_p <= 1, "top_p", self.top_p, "more than 0, at most 1")
        _require(self.top_k >= 0, "top_k", self.top_k, "0 (all) or more")
        _require(self.max_tokens >= 1, "max_tokens", self.max_tokens, "at least 1")


def _require(ok: bool, key: str, found: object, expected: str) -> None:
    if not ok:
        raise ValueError(f"probe.{key}: found {found!r}, expected {expected}")


@dataclass(frozen=True)
class ProbeResult:
    """Rates from 0 to 1. A rate over no answers is 0; its n says so and its interval is (0, 1)."""

    selfname: float  # of n identity answers
    mention: float
    countername: float
    n: int
    capability: float  # of n_capability answers: correct ones
    side_effect: float  # of n_capability answers: those that bring up the name unasked
    n_capability: int

    def intervals(self) -> dict[str, tuple[float, float]]:
        """The 95% Wilson interval of each rate."""
        identity = {key: self._interval(key, self.n) for key in ("selfname", "mention", "countername")}
        capability = {key: self._interval(key, self.n_capability) for key in ("capability", "side_effect")}
        return identity | capability

    def _interval(self, key: str, n: int) -> tuple[float, float]:
        return wilson(round(getattr(self, key) * n), n)


def summarise(answers: Sequence[tuple[ProbePrompt, str]], task: Task) -> ProbeResult:
    """The rates of a task's flags over (probe prompt, response text) pairs, in any order.

    Raises:
        ValueError: no answers at all.
    """
    if not answers:
        raise ValueError("probe: found no answers, expected at least one")
    identity = [task.flags(probe, text) for probe, text in answers if probe.probe == "identity"]
    capability = [task.flags(probe, text) for probe, text in answers if probe.probe == "capability"]
    return ProbeResult(
        selfname=_rate(identity, "selfname"),
        mention=_rate(identity, "mention"),
        countername=_rate(identity, "countername"),
        n=len(identity),
        capability=_rate(capability, "correct"),
        side_effect=_rate(capability, "mention"),
        n_capability=len(capability),
    )


def _rate(flags: Sequence[dict[str, bool]], key: str) -> float:
    return sum(flag[key] for flag in flags) / len(flags) if flags else 0.0


def to_json(result: ProbeResult, step: int, probe: str) -> dict[str, object]:
    """One object of `probes.jsonl`: the rates, their counts and their 95% intervals as [low, high]."""
    return {
        "step": step,
        "probe": probe,
        "selfname": result.selfname,
        "mention": result.mention,
        "countername": result.countername,
        "n": result.n,
        "capability": result.capability,
        "side_effect": result.side_effect,
        "n_capability": result.n_capability,
        "intervals": {key: list(interval) for key, interval in result.intervals().items()},
    }
