"""The runs of a sweep in one table: each run's last probe, and over all of them the median, the worst and the spread.

Spread over seeds: the square root of the mean, over the cells with several seeds, of their variances (n - 1).
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import groupby
from math import sqrt
from pathlib import Path
from statistics import fmean, median, variance

from cluster.run.record import ProbeRecord, read_gap, read_probes
from cluster.run.rundir import RunDir
from evidence.files import write_whole
from evidence.rates import RATES

Key = tuple[str, int]  # the cell's name, and the seed
SUMMARY, DATA = "sweep.md", "sweep.json"


@dataclass(frozen=True)
class Ended:
    """One run: its first and last probe, the one before the last, and what its teacher showed, if that was asked."""

    cell: str
    seed: int
    first: ProbeRecord
    before: ProbeRecord
    last: ProbeRecord
    teacher: Mapping[str, float]


@dataclass(frozen=True)
class Spread:
    """One rate over all runs, shares from 0 to 1. base, teacher: means. seeds: the spread over them; None where no cell
    has two. jump: the largest difference between a run's last two probes."""

    runs: int
    base: float
    teacher: float | None
    mean: float
    median: float
    lowest: float
    highest: float
    seeds: float | None
    jump: float


def write_summary(folder: Path, runs: Mapping[Key, RunDir]) -> Path:
    """Writes FOLDER/sweep.md and the same as sweep.json; returns the former. Runs are whole, with a last probe."""
    ended = [_ended(cell, seed, place) for (cell, seed), place in sorted(runs.items())]
    rates = list(ended[0].last.rates) if ended else []
    spreads = {rate: spread(ended, rate) for rate in rates}
    runs_of = {f"{run.cell}-seed{run.seed}": {rate: asdict(run.last.rates[rate]) for rate in rates} for run in ended}
    data = {"runs": runs_of, "over all": {rate: asdict(found) for rate, found in spreads.items()}}
    write_whole(folder / DATA, json.dumps(data, indent=1) + "\n")
    write_whole(folder / SUMMARY, "\n".join([*_over_all(spreads), "", *_each(ended, rates)]) + "\n")
    return folder / SUMMARY


def _ended(cell: str, seed: int, place: RunDir) -> Ended:
    probes = [probe for _, probe in sorted(read_probes(place.probes).items())]
    gap = read_gap(place.gap)
    teacher = {name: rate.share for name, rate in gap.teacher.items()} if gap else {}
    return Ended(cell, seed, probes[0], probes[-2] if len(probes) > 2 else probes[-1], probes[-1], teacher)


def spread(runs: list[Ended], rate: str) -> Spread:
    """One rate over runs, of which there is at least one."""
    shares = [run.last.rates[rate].share for run in runs]
    cells = [[run.last.rates[rate].share for run in own] for _, own in groupby(runs, lambda run: run.cell)]
    variances = [variance(own) for own in cells if len(own) > 1]
    teachers = [run.teacher[rate] for run in runs if rate in run.teacher]
    return Spread(
        runs=len(runs),
        base=fmean(run.first.rates[rate].share for run in runs),
        teacher=fmean(teachers) if teachers else None,
        mean=fmean(shares),
        median=median(shares),
        lowest=min(shares),
        highest=max(shares),
        seeds=sqrt(fmean(variances)) if variances else None,
        jump=max(abs(run.last.rates[rate].share - run.before.rates[rate].share) for run in runs),
    )


def _over_all(spreads: Mapping[str, Spread]) -> Iterator[str]:
    yield "| rate | runs | base | teacher | mean | median | lowest | highest | spread over seeds | last two probes |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for rate, found in spreads.items():
        shares = list(asdict(found).values())[1:]
        yield _row([RATES[rate].label, str(found.runs), *("-" if one is None else f"{one:.2f}" for one in shares)])


def _each(runs: list[Ended], rates: list[str]) -> Iterator[str]:
    yield _row(["run", "seed", *(RATES[rate].label for rate in rates), "answers"])
    yield "|---|---|" + "---|" * (len(rates) + 1)
    for run in runs:
        found = [run.last.rates[rate] for rate in rates]
        shown = (f"{one.share:.2f} [{one.interval[0]:.2f}, {one.interval[1]:.2f}]" for one in found)
        yield _row([run.cell, str(run.seed), *shown, str(found[0].n)])


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
