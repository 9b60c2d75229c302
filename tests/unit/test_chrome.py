"""The timeline for Perfetto: its events, in order, on rows that do not overlap."""

import json
from pathlib import Path

import pytest

from cluster.__main__ import main
from cluster.config import Recipe
from cluster.observe.chrome import events, rows
from cluster.observe.files import SAMPLES, TRACE
from cluster.observe.seen import Seen
from cluster.run.record import append_step
from evidence.telemetry import Sample, Span, append_samples, append_spans
from tests.fakes import fake_run
from tests.unit.test_observer import SAMPLE
from tests.unit.test_record import a_step

SPANS = [
    Span("learner", "learn", 100.0, 104.0), Span("driver", "wait for rollouts", 98.0, 100.0),
    Span("engine", "sample", 98.5, 101.0), Span("engine", "score", 100.0, 102.0),
    Span("engine", "sample", 101.0, 103.0),
]  # fmt: skip


def test_spans_that_overlap_have_rows_of_their_own() -> None:
    engine = [span for span in SPANS if span.lane == "engine"]
    assert [(row, span.name, span.begin) for row, span in rows(engine)] == [
        (1, "sample", 98.5), (2, "score", 100.0), (1, "sample", 101.0),
    ]  # fmt: skip


def test_every_span_step_and_sample_is_an_event_from_time_zero() -> None:
    parts = {"forward_s": 1.0, "backward_s": 2.0, "lr": 0.5}
    steps = [a_step(0, time=104.5, wall_s=6.0, metrics=parts), a_step(1, time=None)]
    samples = [Sample(99.0, groups={"done": 2}, waiting={"student": 1}), Sample(100.0, fault="late")]
    found = list(events(Seen("run", Recipe(), steps, (), samples, SPANS)))
    names = {event["pid"]: event["args"]["name"] for event in found if event["name"] == "process_name"}
    assert names == {0: "steps", 1: "driver", 2: "learner", 3: "engine"}
    slices = [(names[e["pid"]], e["name"], e["ts"], e["dur"]) for e in found if e["ph"] == "X"]
    assert ("learner", "learn", 2_000_000, 4_000_000) in slices and len(slices) == 6
    assert ("steps", "step 1", 500_000, 6_000_000) in slices
    assert min(event["ts"] for event in found if "ts" in event) == 0
    counters = {event["name"]: event["args"] for event in found if event["ph"] == "C"}
    assert counters.pop("learner's seconds by part") == {"forward": 1.0, "backward": 2.0}
    assert counters == {"groups": {"done": 2}, "work that waits": {"student": 1}, "outstanding tokens": {}}


def test_the_command_writes_json_and_refuses_a_run_without_a_timeline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = fake_run(tmp_path / "run", {0: {"selfname": (0, 4)}}), tmp_path / "deep" / "out.json"
    assert main(["trace", str(run)]) == 2
    assert "run: found no spans in trace.jsonl, expected a run of this version" in capsys.readouterr().err
    append_spans(run / TRACE, SPANS)
    append_samples(run / SAMPLES, [SAMPLE])
    append_step(run / "metrics.jsonl", a_step(0, time=104.5, wall_s=1.0))
    assert main(["trace", str(run), "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert (
        len([event for event in json.loads(out.read_text())["traceEvents"] if event["ph"] == "X"]) == 5
    )  # cut spans are one
    assert main(["trace", str(tmp_path)]) == 2
    assert "found no config.toml, expected a run directory" in capsys.readouterr().err
