"""The only sink of figures: metrics.jsonl, probes.jsonl, and the lines a person reads while it runs."""

import json
import time
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.status import Status

from evidence.rates import RATES


class MetricsSink:
    """Appends one object a step and one object a probe, and shows progress."""

    def __init__(self, run_dir: Path, steps: int, console: Console | None = None) -> None:
        self._run_dir, self._steps = run_dir, steps
        self._console = console or Console(highlight=False)
        self._status: Status | None = None
        self._started: float | None = None
        self._done = 0
        self.headline = "probe -"
        self.doing = ""  # the last stage

    def stage(self, text: str) -> None:
        """What is happening now: a live line on a terminal, nothing elsewhere."""
        self.doing = text
        if self._console.is_terminal:
            if self._status is None:
                self._status = self._console.status(text)
                self._status.start()
            self._status.update(text)

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def write_step(self, record: dict[str, Any]) -> None:
        append_json(self._run_dir / "metrics.jsonl", record)
        now = time.monotonic()
        self._started = self._started if self._started is not None else now - record["wall_s"]
        self._done += 1
        left = (now - self._started) / self._done * (self._steps - record["step"] - 1)
        self.say(step_line(record, self._steps, self.headline, left))

    def write_probe(self, record: dict[str, Any]) -> None:
        append_json(self._run_dir / "probes.jsonl", record)
        self.headline = _short(record, next(iter(record["intervals"])))
        self.say(probe_line(record))

    def close(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None


def append_json(path: Path, record: dict[str, Any]) -> None:
    """One whole line, flushed: a reader never sees half an object."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def step_line(record: dict[str, Any], steps: int, headline: str, left_s: float) -> str:
    """A step's figures; `headline` is the last probe's main one."""
    rates = "  ".join(
        f"{name} {stage['tokens_per_s']:.0f} tok/s" for name, stage in record["stages"].items() if stage["tokens"]
    )
    k1 = "-" if record["k1"] is None else f"{record['k1']:+.3f}"
    return (
        f"step {record['step'] + 1:>3}/{steps}  {record['wall_s']:5.1f} s  {rates}  kept {record['kept']:.2f}  "
        f"k1 {k1}  {headline}  busy {record['busy_fraction']:.0%}  left {_clock(left_s)}"
    )


def probe_line(record: dict[str, Any]) -> str:
    """Every rate of a probe, each group with the number of answers that it is a share of."""
    groups = [
        "  ".join(_short(record, name) for name in names) + f" (n={record[count]})"
        for count, names in groupby(record["intervals"], key=lambda name: RATES[name].count)
    ]
    return f"probe at step {record['step']}: " + "  ".join(groups)


def _short(record: dict[str, Any], name: str) -> str:
    return f"{RATES[name].short} {record[name]:.2f}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"


def summary_table(first: dict[str, Any], last: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """(figure, before, after, count) rows of two probes, with 95% intervals."""
    return [
        (RATES[name].label, _rate(first, name), _rate(last, name), str(last[RATES[name].count]))
        for name in last["intervals"]
    ]


def _rate(probe: dict[str, Any], key: str) -> str:
    low, high = probe["intervals"][key]
    return f"{probe[key]:.2f} [{low:.2f}, {high:.2f}]"
