"""Where the loop's records go once they are written: lines for a person, and the observer."""

from collections.abc import Mapping
from itertools import groupby
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.status import Status

from cluster.errors import printable
from cluster.run.record import ProbeRecord, StepRecord
from evidence.rates import RATES
from rollout.probe import Rate

if TYPE_CHECKING:
    from cluster.observe.observer import Observer


class MetricsSink:
    """Shows progress, and tells the observer of each step."""

    def __init__(self, steps: int, console: Console | None = None) -> None:
        self._steps = steps
        self._console = console or Console(highlight=False)
        self._status: Status | None = None
        self.observer: Observer | None = None  # hears each record
        self.headline = "probe -"
        self.doing = ""  # the last stage

    def stage(self, text: str) -> None:
        """What is happening now: a live line on a terminal, nothing elsewhere."""
        self.doing = text
        if self._console.is_terminal:
            if self._status is None:
                self._status = self._console.status(escape(text))
                self._status.start()
            self._status.update(escape(text))

    def say(self, text: str) -> None:
        self._console.print(printable(text), markup=False, soft_wrap=True)

    def show_step(self, record: StepRecord) -> None:
        """A step whose line is written."""
        if self.observer is not None:
            self.observer.step(record)
        self.say(step_line(record, self._steps, self.headline))

    def show_probe(self, record: ProbeRecord) -> None:
        """A probe whose line is written."""
        if self.observer is not None:
            self.observer.probe(record)
        self.headline = _short(record, next(iter(record.rates)))
        self.say(probe_line(record))

    def close(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None


def step_line(record: StepRecord, steps: int, headline: str) -> str:
    """A step's figures; `headline` is the last probe's main one."""
    rates = "  ".join(f"{name} {stage.tokens_per_s:.0f} tok/s" for name, stage in record.stages.items() if stage.tokens)
    kept, k1 = record.mean("kept"), record.mean("k1")
    return (
        f"step {record.step + 1:>3}/{steps}  {record.wall_s or 0.0:5.1f} s  {rates}  "
        f"kept {kept.value if kept else 0.0:.2f}  k1 {f'{k1.value:+.3f}' if k1 else '-'}  {headline}  "
        f"busy {record.busy_fraction or 0.0:.0%}  left {record.left(steps)}"
    )


def probe_line(record: ProbeRecord) -> str:
    """Every rate of a probe, each group with the number of answers that it is a share of."""
    groups = [list(names) for _, names in groupby(record.rates, key=lambda name: RATES[name].count)]
    parts = ["  ".join(_short(record, name) for name in names) + f" (n={record.rates[names[0]].n})" for names in groups]
    return f"probe at step {record.step}: " + "  ".join(parts)


def _short(record: ProbeRecord, name: str) -> str:
    return f"{RATES[name].short} {record.rates[name].share:.2f}"


def summary_table(
    first: ProbeRecord, last: ProbeRecord, teacher: Mapping[str, Rate]
) -> list[tuple[str, str, str, str, str]]:
    """(figure, before, after, teacher, count) rows of two probes and of the teacher's rates, with 95% intervals."""
    told = {name: _rate(rate) for name, rate in teacher.items()}
    return [
        (RATES[name].label, _rate(first.rates[name]), _rate(rate), told.get(name, "-"), str(rate.n))
        for name, rate in last.rates.items()
    ]


def _rate(rate: Rate) -> str:
    low, high = rate.interval
    return f"{rate.share:.2f} [{low:.2f}, {high:.2f}]"
