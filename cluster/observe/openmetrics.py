"""`edge-opd export-metrics`: a run's figures with their times as OpenMetrics, to be filled into a Prometheus:

promtool tsdb create-blocks-from openmetrics FILE DATA
"""

from collections.abc import Iterator
from pathlib import Path

from cluster.observe.figures import FIGURES, RAY_PREFIX
from cluster.observe.observer import FAILED, FINISHED, Batch
from cluster.observe.seen import Seen, read_seen
from cluster.observe.values import Values
from evidence.telemetry import pieces

Series = dict[str, list[tuple[int, float]]]  # labels as text: (milliseconds, value)


def export_metrics(run: Path, out: Path | None) -> Path:
    """Writes a run's figures (default: metrics-RUN.txt here) and returns the path.

    Raises:
        ValueError: not a run, or one whose lines have no times, as those of older versions.
    """
    seen = read_seen(run)
    path = out or Path(f"metrics-{seen.name}.txt")
    if not seen.steps or any(step.time is None for step in seen.steps):
        raise ValueError(f"{run}: found no times in metrics.jsonl, expected a run of this version with a step")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines(seen)), encoding="utf-8")
    return path


def lines(seen: Seen) -> Iterator[str]:
    """The families one after another, each series by its time. Names are those of Ray's endpoint."""
    families = _families(seen)
    for name, row in FIGURES.items():
        if name not in families:
            continue
        yield f"# TYPE {RAY_PREFIX}{name.removesuffix('_total')} {row.kind}\n"
        yield f"# HELP {RAY_PREFIX}{name.removesuffix('_total')} {row.meaning}\n"
        for labels, points in families[name].items():
            for at, value in points:
                yield f"{RAY_PREFIX}{name}{{{labels}}} {value:.10g} {at / 1000:.3f}\n"
    yield "# EOF\n"


def _families(seen: Seen) -> dict[str, Series]:
    """Every value at every moment at which anything came, as a scrape would have found it."""
    values, families = Values(seen.recipe), dict[str, Series]()
    for at, batch in _moments(seen):
        values.add(batch)
        for (name, labels), value in values.now.items():
            text = ",".join(f'{key}="{_escaped(word)}"' for key, word in (("run", seen.name), *labels))
            families.setdefault(name, {}).setdefault(text, []).append((at, value))
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
