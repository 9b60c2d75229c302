"""`edge-opd export-metrics`: a run's figures with their times as OpenMetrics, to be filled into a Prometheus:

promtool tsdb create-blocks-from openmetrics FILE DATA

A value is told as it changes, and again while it stays, since Prometheus looks back for 5 minutes and a rate needs two
values. Of large runs the engines' figures are told once a minute.
"""

from array import array
from collections.abc import Iterator
from pathlib import Path

from cluster.observe.figures import COUNTER, FIGURES, GAUGE, RAY_PREFIX
from cluster.observe.files import place_for
from cluster.observe.observer import FAILED, FINISHED, Batch
from cluster.observe.seen import Seen, read_seen
from cluster.observe.values import Key, Values
from evidence.telemetry import pieces

AGAIN_MS = {GAUGE: 60_000, COUNTER: 15_000}  # after which a value that stays is told again
MOST = 1_000_000  # values of engines, about 120 MB; of a run that has more each is told once in THIN_MS
THIN_MS = 60_000
UNKNOWN = {"run_stopped"}  # of a run's files


def export_metrics(run: Path, out: Path | None) -> Path:
    """Writes a run's figures (default: metrics-RUN.txt here) and returns the path.

    Raises:
        ValueError: not a run, or one whose lines have no times, as those of older versions.
    """
    seen = read_seen(run)
    if not seen.steps or any(step.time is None for step in seen.steps):
        raise ValueError(f"{run}: found no times in metrics.jsonl, expected a run of this version with a step")
    path = place_for(out or Path(f"metrics-{seen.name}.txt"))
    with path.open("w", encoding="utf-8") as file:
        file.writelines(lines(seen))
    return path


def lines(seen: Seen) -> Iterator[str]:
    """The families one after another, each series by its time. Names are those of Ray's endpoint."""
    families = _families(seen)
    for name, row in FIGURES.items():
        if name not in families or name in UNKNOWN:
            continue
        yield f"# TYPE {RAY_PREFIX}{name.removesuffix('_total')} {row.kind}\n"
        yield f"# HELP {RAY_PREFIX}{name.removesuffix('_total')} {row.meaning}\n"
        for labels, series in families[name].items():
            for at, value in zip(series.times, series.values, strict=True):
                yield f"{RAY_PREFIX}{name}{{{labels}}} {value:.10g} {at / 1000:.3f}\n"
    yield "# EOF\n"


class _Series:
    """The points of a figure with its labels, Unix ms. again_ms: between two of one value; least_ms: between two."""

    def __init__(self, again_ms: int, least_ms: int) -> None:
        self._again_ms, self._least_ms = again_ms, least_ms
        self.times, self.values = array("q"), array("d")

    def add(self, at: int, value: float) -> None:
        """The value at a moment, which is left out where it is due neither as news nor again."""
        if self.times:
            due = self._again_ms if value == self.values[-1] else 0
            if at - self.times[-1] < max(due, self._least_ms):
                return
        self.times.append(at)
        self.values.append(value)


def _families(seen: Seen) -> dict[str, dict[str, _Series]]:
    """The values at the moments at which anything came, as scrapes would have found them, by name and labels."""
    values, found = Values(seen.recipe), dict[Key, _Series]()
    of_engines = {name for name, row in FIGURES.items() if "engine" in row.labels}
    count = len(of_engines) * sum(len(sample.engines) for sample in seen.samples)
    least_ms = dict.fromkeys(of_engines, THIN_MS if count > MOST else 0)
    for at, batch in _moments(seen):
        values.add(batch)
        for key, value in values.now.items():
            if key not in found:
                found[key] = _Series(AGAIN_MS[FIGURES[key[0]].kind], least_ms.get(key[0], 0))
            found[key].add(at, value)
    families: dict[str, dict[str, _Series]] = {}
    for (name, labels), series in found.items():
        text = ",".join(f'{label}="{_escaped(word)}"' for label, word in (("run", seen.name), *labels))
        families.setdefault(name, {})[text] = series
    return families


def _escaped(word: str) -> str:
    return word.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _moments(seen: Seen) -> Iterator[tuple[int, Batch]]:
    """What came in each millisecond in which a sample, a step or a probe did; the last is the run's end."""
    events = [(sample.time, Batch(0.0, samples=(sample,))) for sample in seen.samples]
    events += [(step.time, Batch(0.0, steps=(step,))) for step in seen.steps if step.time is not None]
    events += [(probe.time, Batch(0.0, probes=(probe,))) for probe in seen.probes if probe.time is not None]
    events.sort(key=lambda event: event[0])
    moments: dict[int, list[Batch]] = {}
    for (at, batch), cut in zip(events, pieces(seen.spans, [at for at, _ in events]), strict=True):
        moments.setdefault(round(at * 1000), []).extend((batch, Batch(0.0, spans=tuple(cut))))
    for milliseconds, batches in moments.items():
        yield milliseconds, _together(batches)
    if moments:
        yield max(moments) + 1, Batch(0.0, ended=FINISHED if seen.is_whole else FAILED)


def _together(batches: list[Batch]) -> Batch:
    return Batch(
        0.0,
        tuple(sample for batch in batches for sample in batch.samples),
        tuple(span for batch in batches for span in batch.spans),
        tuple(step for batch in batches for step in batch.steps),
        tuple(probe for batch in batches for probe in batch.probes),
    )
