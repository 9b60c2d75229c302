"""What each service waited for, from made-up timelines whose seconds are counted by hand."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import cluster.observe.waits as waits_module
from cluster.dashboard.charts import charts_of
from cluster.dashboard.panels import PANELS
from cluster.observe.observer import Batch
from cluster.observe.seen import read_seen
from cluster.observe.timeline import CALLS, in_order, is_engine
from cluster.observe.waits import CAUSES, Waits, Window, together, waited
from evidence.telemetry import Sample, Span, pieces
from rollout.stages import SERVICE, VERIFY, WRITE
from tests.observed import BEGAN, dense_spans, observed_run

STUDENT, TEACHER = "student engine 0", "teacher engine 0"
# A step on-policy: sampled and scored from 0 to 4 (0.5 s of verifying in between, 0.1 s of writing), learned to 7,
# pushed and checked to 8; then a probe to 10, and a checkpoint to 11.
STEP = (
    Span("driver", "wait for rollouts", 0.0, 4.0),
    Span(STUDENT, "sample", 0.0, 2.0),
    Span("rollout service", "verify", 1.8, 2.5),
    Span(TEACHER, "score", 2.5, 3.9),
    Span("rollout service", "write", 3.9, 4.0),
    Span("learner", "learn", 4.0, 7.0),
    Span("learner", "push", 7.0, 7.5),
    Span("driver", "check", 7.5, 8.0),
    Span("driver", "probe", 8.0, 10.0),
    Span(STUDENT, "probe", 8.0, 10.0),
    Span("learner", "save", 10.0, 11.0),
)
SECONDS = {
    ("rollout", "verify"): 0.5,
    ("rollout", "write"): 0.1,
    ("rollout", "other"): 1.0,  # the checkpoint
    ("rollout", "lag"): 3.0,
    ("rollout", "weights"): 1.0,
    ("rollout", "probe"): 2.0,
    ("learner", "rollouts"): 4.0,
    ("learner", "weights"): 0.5,  # while engines check, it does nothing
    ("learner", "probe"): 2.0,
}


def test_a_steps_waits_are_counted_once_by_what_goes_on_meanwhile() -> None:
    assert waited(STEP, 0.0, 11.0) == pytest.approx(SECONDS)
    assert waited(STEP, 5.0, 7.25) == pytest.approx({("rollout", "lag"): 2.0, ("rollout", "weights"): 0.25})
    assert waited((), 1.0, 3.0) == {("rollout", "other"): 2.0, ("learner", "other"): 2.0}


def test_side_by_side_only_what_nothing_covers_is_a_wait() -> None:
    """With a lag: sampling goes on while the learner learns and is pushed; two engines overlap."""
    spans = (
        Span(STUDENT, "sample", 0.0, 6.0),
        Span("student engine 1", "sample", 5.0, 9.0),
        Span("learner", "learn", 0.0, 4.0),
        Span("learner", "push", 4.0, 5.0),
        Span("driver", "wait for rollouts", 5.0, 9.5),
    )
    assert waited(spans, 0.0, 10.0) == pytest.approx(
        {("learner", "rollouts"): 4.5, ("learner", "other"): 0.5, ("rollout", "other"): 1.0}
    )


def test_of_many_engines_only_what_all_of_them_do_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 engines, each with a stretch of 0.1 s each 0.2 s, are looked at where the first begins and the last ends; each
    1/1000 s by itself has the same waits, but for half of one at each of the 15 pauses."""
    looked, waiting = list[float](), waits_module._waiting
    monkeypatch.setattr(waits_module, "_waiting", lambda on: looked.append(1.0) or waiting(on))
    spans = [span for span in dense_spans(-BEGAN, 4.0, 64) if span.end < 3.0] + [Span("learner", "learn", 2.5, 3.5)]
    found = waited(spans, 0.0, 4.0)
    assert 0 < len(looked) < 50
    expected = Counter[tuple[str, str]]()
    for at in (np.arange(4000) + 0.5) / 1000:
        on = {span.lane for span in spans if span.begin <= at < span.end}
        if on <= {"learner"}:
            expected["rollout", "lag" if on else "other"] += 1
        if "learner" not in on:
            expected["learner", "other"] += 1
    assert found == pytest.approx({pair: count / 1000 for pair, count in expected.items()}, abs=0.01)


def test_a_rank_is_no_engine_and_its_lane_is_beside_the_learners() -> None:
    lanes = ["student engine 0", "learner rank 10", "rollout service", "push", "learner rank 2", "learner", "driver"]
    shown = ["driver", "learner", "learner rank 2", "learner rank 10", "push", "rollout service", "student engine 0"]
    assert in_order(lanes) == shown and [lane for lane in shown if is_engine(lane)] == ["student engine 0"]
    engines = [f"{pool} engine {place}" for pool in ("student", "teacher") for place in (0, 2, 10)] + ["vllm.example"]
    assert in_order(sorted(engines)) == engines, "by their number"
    spans = [Span("learner", "learn", 0.0, 2.0), Span("learner rank 1", "sample", 0.0, 2.0)]
    assert waited(spans, 0.0, 2.0) == {("rollout", "lag"): 2.0}


def cut(spans: tuple[Span, ...], at: float) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
    """As Activity.take does: what has ended or begun by then, and the rest."""
    before = tuple(Span(s.lane, s.name, s.begin, min(s.end, at)) for s in spans if s.begin < at)
    return before, tuple(Span(s.lane, s.name, max(s.begin, at), s.end) for s in spans if s.end > at)


def test_windows_from_sample_to_sample_add_up_to_the_whole() -> None:
    """The driver's spans are cut a little after a sample, so that a piece of a window comes a batch later. A sample of
    a service that did not answer ends no window."""
    waits, rest, windows = Waits(1.0), STEP, []
    for at in (0.0, 1.0, 4.4, 5.2, 8.1, 11.0):
        new, rest = cut(rest, at + 0.03)
        windows += waits.add(Batch(at, samples=(Sample(at), Sample(at + 0.01, fault="silent")), spans=new))
    assert [(window.begin, window.end) for window in windows] == [(0.0, 1.0), (1.0, 4.4), (4.4, 5.2), (5.2, 8.1)]
    windows += waits.add(Batch(11.1, ended="finished"))
    whole = together(windows)
    assert (whole.begin, whole.end) == (0.0, 11.0) and whole.seconds == pytest.approx(SECONDS)
    assert together([Window(0.0, 1.0, {})]) == Window(0.0, 1.0, {})
    assert not list(waits.add(Batch(12.0, ended="finished")))


def test_time_in_which_no_run_was_there_is_no_wait() -> None:
    """A run that is resumed eight hours later, with samples every 2 s."""
    waits = Waits(2.0)
    samples = [Sample(at) for at in (0.0, 2.0, 28800.0, 28802.0)]
    windows = list(waits.add(Batch(28803.0, samples=tuple(samples), ended="finished")))
    assert [(window.begin, window.end) for window in windows] == [(0.0, 2.0), (28800.0, 28802.0)]


@pytest.mark.parametrize("span", [pair for causes in CAUSES.values() for on in causes.values() for pair in on])
def test_a_cause_is_a_span_that_a_service_writes(span: tuple[str, str]) -> None:
    """And with nothing else under way it is the cause of a wait of the service beside it. What the rollout service
    writes itself: tests/unit/test_worker.py and tests/process/test_fleet.py."""
    assert span in {*CALLS.values(), (SERVICE, VERIFY), (SERVICE, WRITE), ("engine", "start")}
    found = {what for (service, what) in waited([Span(*span, 0.0, 1.0)], 0.0, 1.0)}
    assert found & {"probe", "weights", "lag", "rollouts", "verify", "write", "start"}


def test_engines_that_start_are_waited_for_by_both_services_and_later_by_the_rollouts() -> None:
    starting = [Span("driver", "start engines", 0.0, 3.0), Span(STUDENT, "start", 0.0, 3.0)]
    assert waited(starting, 0.0, 3.0) == {("rollout", "start"): 3.0, ("learner", "start"): 3.0}
    replaced = [
        Span("driver", "wait for rollouts", 0.0, 4.0),
        Span(STUDENT, "sample", 0.0, 1.0),
        Span(STUDENT, "start", 1.0, 4.0),
        Span(TEACHER, "score", 0.5, 1.5),
    ]
    assert waited(replaced, 0.0, 4.0) == {("rollout", "start"): 2.5, ("learner", "rollouts"): 4.0}


def test_the_first_start_of_the_engines_is_a_wait_too_and_so_is_that_of_a_resume() -> None:
    """Nothing samples before they have started. The run ends at 20 and is resumed at 1000; all at once as from files,
    and batch by batch as while it runs."""
    spans = [Span("driver", "start engines", at, at + 90.0) for at in (-90.0, 1000.0)]
    spans += [Span("learner", "start", at, at + 30.0) for at in (-90.0, 1000.0)]
    spans += [Span("driver", "wait for rollouts", 0.0, 20.0), Span(STUDENT, "sample", 0.0, 20.0)]
    moments = [1.0, 10.0, 20.0, 1091.0, 1100.0]
    batches = [
        Batch(at, samples=(Sample(at),), spans=tuple(new))
        for at, new in zip(moments, pieces(spans, moments), strict=True)
    ]
    at_once = [Batch(1100.0, tuple(map(Sample, moments)), tuple(spans))]
    for coming in (batches, at_once):
        waits = Waits(2.0)
        windows = [window for batch in [*coming, Batch(1100.0, ended="finished")] for window in waits.add(batch)]
        assert [(window.begin, window.end) for window in windows] == [
            (-90.0, 1.0), (1.0, 10.0), (10.0, 20.0), (1000.0, 1091.0), (1091.0, 1100.0),
        ]  # fmt: skip
        assert together(windows).seconds == pytest.approx({
            ("rollout", "start"): 180.0, ("learner", "start"): 120.0, ("rollout", "other"): 10.0,
            ("learner", "other"): 10.0, ("learner", "rollouts"): 20.0,
        })  # fmt: skip


def test_what_is_pushed_while_the_learner_learns_is_waited_for_first() -> None:
    spans = [Span("learner", "learn", 0.0, 2.0), Span("driver", "sleep", 0.0, 1.0), Span("driver", "probe", 0.0, 0.5)]
    assert waited(spans, 0.0, 2.0) == {("rollout", "probe"): 0.5, ("rollout", "weights"): 0.5, ("rollout", "lag"): 1.0}


def test_the_page_shows_shares_over_a_steps_time(tmp_path: Path) -> None:
    """Samples every 2 s of steps of 10 s, of which the learner works 7.6 s: every point after the first step has that,
    whatever its own window holds."""
    charts = charts_of(read_seen(observed_run(tmp_path / "run", steps=4)))
    place = next(place for place, panel in enumerate(PANELS) if panel.title == "What the learner waited for")
    series = json.loads(charts.shown({}))["charts"][place]["series"]
    assert {len(values) for values in series.values()} == {4 * 5 - 1}
    expected = {"rollouts": 0.2, "weights": 0.03, "probe": 0.0, "start": 0.0, "other": 0.01}
    assert series == {name: pytest.approx([*values[:4], *[expected[name]] * 15]) for name, values in series.items()}
