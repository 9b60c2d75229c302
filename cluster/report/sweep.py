"""The runs of a sweep in one table: each run's last probe, and over all of them, and over those of each value that was
varied, the median, the lowest and the highest, and the spread over seeds.

The spread over seeds is the square root of the mean, over the cells with several seeds, of their variances (n - 1). The
last change is the largest one, over the runs, between a run's last two probes after its first; with export.choose =
"average" the last probe is of the averaged weights, and the one before of those of its step.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path
from statistics import fmean, median, variance

from cluster.run.record import ProbeRecord
from evidence.files import write_whole
from evidence.rates import RATES
from rollout.probe import Rate

Key = tuple[tuple[str, ...], int]  # a value's name of each thing that is varied, and the seed
SUMMARY, DATA = "sweep.md", "sweep.json"


@dataclass(frozen=True)
class Whole:
    """What a finished run found: its probes in order, its teacher's rates, none where that was not asked, and the least
    main rate that its recipe asks for."""

    probes: Sequence[ProbeRecord]
    teacher: Mapping[str, Rate]
    required: float

    @property
    def last(self) -> ProbeRecord:
        return self.probes[-1]

    @property
    def is_enough(self) -> bool:
        """Whether the main rate, the first, is what is required."""
        return next(iter(self.last.rates.values())).share >= self.required

    def last_change(self, rate: str) -> float | None:
        """Between the last two probes after the first; None where there are none."""
        shares = [probe.rates[rate].share for probe in self.probes[1:][-2:] if rate in probe.rates]
        return abs(shares[1] - shares[0]) if len(shares) == 2 else None


@dataclass(frozen=True)
class Spread:
    """One rate over runs, shares from 0 to 1. base, teacher: means, None where none was asked. seeds: the spread over
    them, None where no cell has two."""

    runs: int
    base: float | None
    teacher: float | None
    mean: float
    median: float
    lowest: float
    highest: float
    seeds: float | None
    last_change: float | None


def write_summary(folder: Path, varied: Sequence[str], runs: Mapping[Key, Whole]) -> Path:
    """Writes FOLDER/sweep.md and the same as sweep.json; returns the former. varied: what is, in the order of the
    keys' names."""
    runs = dict(sorted(runs.items()))
    spreads = {label: _spreads(own) for label, own in _groups(varied, runs)}
    data = {
        "runs": [_as_data(cell, seed, run, varied) for (cell, seed), run in runs.items()],
        "over": {label: {rate: asdict(found) for rate, found in of.items()} for label, of in spreads.items()},
    }
    write_whole(folder / DATA, json.dumps(data, indent=1) + "\n")
    write_whole(folder / SUMMARY, "\n".join([*_over(spreads), "", *_each(varied, runs)]) + "\n")
    return folder / SUMMARY


def _groups(varied: Sequence[str], runs: Mapping[Key, Whole]) -> Iterator[tuple[str, dict[Key, Whole]]]:
    """All runs, and those of each value of what has several."""
    yield "all", dict(runs)
    for place, what in enumerate(varied):
        values = dict.fromkeys(cell[place] for cell, _ in runs)
        for value in values if len(values) > 1 else ():
            yield f"{what} {value}", {key: run for key, run in runs.items() if key[0][place] == value}


def _spreads(runs: Mapping[Key, Whole]) -> dict[str, Spread]:
    """By rate; each over the runs that have it."""
    rates = dict.fromkeys(rate for run in runs.values() for rate in run.last.rates)
    return {rate: spread({key: run for key, run in runs.items() if rate in run.last.rates}, rate) for rate in rates}


def spread(runs: Mapping[Key, Whole], rate: str) -> Spread:
    """One rate over runs that have it, of which there is at least one."""
    cells: dict[tuple[str, ...], list[float]] = {}
    for (cell, _), run in runs.items():
        cells.setdefault(cell, []).append(run.last.rates[rate].share)
    shares = [share for own in cells.values() for share in own]
    variances = [variance(own) for own in cells.values() if len(own) > 1]
    bases = [run.probes[0].rates[rate].share for run in runs.values() if rate in run.probes[0].rates]
    teachers = [run.teacher[rate].share for run in runs.values() if rate in run.teacher]
    changes = [change for run in runs.values() if (change := run.last_change(rate)) is not None]
    return Spread(
        runs=len(shares),
        base=fmean(bases) if bases else None,
        teacher=fmean(teachers) if teachers else None,
        mean=fmean(shares),
        median=median(shares),
        lowest=min(shares),
        highest=max(shares),
        seeds=sqrt(fmean(variances)) if variances else None,
        last_change=max(changes, default=None),
    )


def _as_data(cell: tuple[str, ...], seed: int, run: Whole, varied: Sequence[str]) -> dict[str, object]:
    return {
        "cell": dict(zip(varied, cell, strict=True)),
        "seed": seed,
        "probes": {probe.step: {rate: asdict(found) for rate, found in probe.rates.items()} for probe in run.probes},
        "teacher": {rate: asdict(found) for rate, found in run.teacher.items()},
        "required": run.required,
    }


def _over(spreads: Mapping[str, Mapping[str, Spread]]) -> Iterator[str]:
    yield "| over | rate | runs | base | teacher | mean | median | lowest | highest | spread over seeds | last change |"
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    for label, of in spreads.items():
        for rate, found in of.items():
            shares = list(asdict(found).values())[1:]
            shown = ("-" if share is None else f"{share:.2f}" for share in shares)
            yield _row([label, RATES[rate].label, str(found.runs), *shown])


def _each(varied: Sequence[str], runs: Mapping[Key, Whole]) -> Iterator[str]:
    rates = dict.fromkeys(rate for run in runs.values() for rate in run.last.rates)
    yield _row([*varied, "seed", *(RATES[rate].label for rate in rates), "answers", "required"])
    yield "|---" * (len(varied) + len(rates) + 3) + "|"
    for (cell, seed), run in runs.items():
        found = [run.last.rates.get(rate) for rate in rates]
        enough = f"{run.required:.2f}" + ("" if run.is_enough else ", not met")
        yield _row([*cell, str(seed), *map(_shown, found), str(next(iter(run.last.rates.values())).n), enough])


def _shown(rate: Rate | None) -> str:
    return "-" if rate is None else f"{rate.share:.2f} [{rate.interval[0]:.2f}, {rate.interval[1]:.2f}]"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
