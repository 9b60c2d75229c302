"""`edge-opd trace`: a run's timeline as Chrome trace JSON, which Perfetto (https://ui.perfetto.dev) and Chrome open.

A process a lane, with as many rows as its spans overlap without one being inside the other, and counters of samples.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cluster.observe.files import place_for
from cluster.observe.seen import Seen, read_seen
from cluster.observe.timeline import in_order
from evidence.telemetry import Span

Event = dict[str, Any]
SLACK_S = 1e-6


def write_trace(run: Path, out: Path | None) -> Path:
    """Writes a run's timeline (default: trace-RUN.json here) and returns its path.

    Raises:
        ValueError: not a run, or one without a timeline, as those of older versions.
    """
    seen = read_seen(run)
    if not seen.spans:
        raise ValueError(f"{run}: found no spans in trace.jsonl, expected a run of this version with at least one")
    path = place_for(out or Path(f"trace-{seen.name}.json"))
    path.write_text(json.dumps({"traceEvents": list(events(seen))}), encoding="utf-8")
    return path


def events(seen: Seen) -> Iterator[Event]:
    """Chrome's events, in microseconds from the first span or sample."""
    zero = min([span.begin for span in seen.spans] + [sample.time for sample in seen.samples])
    for process, lane in enumerate(in_order({span.lane for span in seen.spans}), start=1):
        yield {"ph": "M", "pid": process, "name": "process_name", "args": {"name": lane}}
        yield {"ph": "M", "pid": process, "name": "process_sort_index", "args": {"sort_index": process}}
        own = [span for span in seen.spans if span.lane == lane]
        for row, span in rows(own):
            at = {"ts": round((span.begin - zero) * 1e6), "dur": round((span.end - span.begin) * 1e6)}
            yield {"ph": "X", "pid": process, "tid": row, "name": span.name, "cat": lane} | at
    yield from _steps(seen, zero)
    yield from _counters(seen, zero)


def rows(spans: Sequence[Span]) -> Iterator[tuple[int, Span]]:
    """(row, span): the first row, from 1, on which nothing else is at that time."""
    ends: list[float] = []
    for span in sorted(spans, key=lambda span: span.begin):
        row = next((row for row, end in enumerate(ends) if end <= span.begin + SLACK_S), len(ends))
        ends[row : row + 1] = [span.end]
        yield row + 1, span


def _steps(seen: Seen, zero: float) -> Iterator[Event]:
    for step in seen.steps:
        if step.time is not None and step.wall_s is not None and step.time - step.wall_s >= zero:
            at = {"ts": round((step.time - step.wall_s - zero) * 1e6), "dur": round(step.wall_s * 1e6)}
            yield {"ph": "X", "pid": 0, "tid": 1, "name": f"step {step.step + 1}", "cat": "step"} | at
            if parts := step.learner_parts:
                yield {"ph": "C", "pid": 0, "name": "learner's seconds by part", "ts": at["ts"], "args": parts}
    yield {"ph": "M", "pid": 0, "name": "process_name", "args": {"name": "steps"}}


def _counters(seen: Seen, zero: float) -> Iterator[Event]:
    for sample in (sample for sample in seen.samples if not sample.fault):
        counters = {"groups": dict(sample.groups), "work that waits": dict(sample.waiting)}
        engines = sample.engines.items()
        counters["outstanding tokens"] = {name: engine.outstanding_tokens for name, engine in engines}
        for name, values in counters.items():
            yield {"ph": "C", "pid": 0, "name": name, "ts": round((sample.time - zero) * 1e6), "args": values}
