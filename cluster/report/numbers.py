"""A number that knows where it came from: its count, its interval, and the run, file and step of every part of it."""

from collections.abc import Iterable
from dataclasses import dataclass

from evidence.intervals import newcombe, wilson


@dataclass(frozen=True, order=True)
class Source:
    """One line of a run's JSON-lines file."""

    run: str
    file: str
    step: int


@dataclass(frozen=True)
class Number:
    """A rate (count of n), a difference of rates (no count), or a mean over n tokens or rollouts (no interval)."""

    value: float
    sources: tuple[Source, ...]
    n: int
    count: int | None = None
    interval: tuple[float, float] | None = None

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps that its parts come from, in order, each once."""
        return tuple(sorted({source.step for source in self.sources}))


def pooled_rate(parts: Iterable[tuple[int, int, Source]]) -> Number | None:
    """The rate of (successes, trials, source) parts added up, with its Wilson interval; None for no trials."""
    return merge(Number(count / n, (source,), n, count) for count, n, source in parts if n)


def pooled_mean(parts: Iterable[tuple[float, int, Source]]) -> Number | None:
    """The mean of (mean, weight, source) parts, weighted by what each is a mean of; None for no weight."""
    listed = list(parts)
    n = sum(weight for _, weight, _ in listed)
    if not n:
        return None
    total = sum(mean * weight for mean, weight, _ in listed)
    return Number(total / n, tuple(sorted(source for *_, source in listed)), n)


def merge(rates: Iterable[Number | None]) -> Number | None:
    """One rate of several, counts and sources added up; None where there is none."""
    found = [rate for rate in rates if rate is not None and rate.count is not None]
    count, n = sum(rate.count or 0 for rate in found), sum(rate.n for rate in found)
    if not n:
        return None
    sources = tuple(sorted(source for rate in found for source in rate.sources))
    return Number(count / n, sources, n, count, wilson(count, n))


def difference(after: Number | None, before: Number | None) -> Number | None:
    """after - before of two rates, with Newcombe's interval; None where one is missing."""
    if after is None or before is None or after.count is None or before.count is None:
        return None
    interval = newcombe(after.count, after.n, before.count, before.n)
    return Number(after.value - before.value, after.sources + before.sources, after.n + before.n, None, interval)
