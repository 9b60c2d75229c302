"""The lanes of the page: what they say of spans that are counted by hand, and how much of them a page holds at most."""

import json
from dataclasses import replace

import pytest

from cluster.config import Recipe, RunConfig
from cluster.dashboard.charts import RunCharts, charts_of
from cluster.dashboard.lanes import BOXES, COLOURS, LANES_S, Lanes, is_work
from cluster.dashboard.panels import PANELS
from cluster.observe.observer import FINISHED, Batch
from cluster.observe.seen import Seen
from cluster.observe.timeline import CALLS
from cluster.run.record import ProbeRecord
from cluster.weights.parts import PARTS
from evidence.telemetry import Span, pieces
from learner.report import ON_LANE
from rollout.probe import Rate
from rollout.stages import VERIFY, WRITE
from tests.observed import BEGAN, STEP_S, a_sample, a_step, dense_spans, spans_of


def test_a_lane_shows_its_spans_and_the_share_in_which_it_worked() -> None:
    lanes = Lanes()
    lanes.add([Span("driver", "wait for rollouts", 10.0, 14.0), Span("learner", "learn", 14.0, 18.0)])
    lanes.add([Span("learner", "learn", 18.0, 19.0), Span("learner", "push", 19.0, 20.0)])  # the first one goes on
    lanes.add([Span("learner rank 1", "learn", 14.0, 16.0), Span("learner rank 1", "reduce", 16.0, 19.0)])
    shown = lanes.shown(10.0)
    assert (shown["title"], shown["begin"], shown["seconds"]) == ("the last 10 s", 10.0, 10.0)
    assert shown["names"] == [["learn", 2], ["push", 3], ["reduce", None], ["wait for rollouts", None]]
    assert shown["rows"] == [
        {"lane": "driver", "share": 0.0, "spans": [0, 400, 3, 400]},
        {"lane": "learner", "share": 0.6, "spans": [400, 900, 0, 500, 900, 1000, 1, 100]},
        {"lane": "learner rank 1", "share": 0.2, "spans": [400, 600, 0, 200, 600, 900, 2, 300]},
    ]


def test_spans_that_are_nearer_than_a_pixel_are_one_that_says_how_much_of_it_is_work() -> None:
    lanes = Lanes()
    short = [Span("e 0", "score", 100.0 + 0.2 * place, 100.1 + 0.2 * place) for place in range(10)]
    lanes.add([*short, Span("e 0", "score", 105.0, 106.0), Span("e 0", "sample", 100.5, 102.0)])
    (row,) = lanes.shown(1.0)["rows"]
    assert row["spans"] == [50, 200, 0, 150, 0, 190, 1, 100, 500, 600, 1, 100]
    assert row["share"] == pytest.approx((0.3 + 1.5 + 1.0) / 6.0, abs=1e-4)  # what overlaps counts once


@pytest.mark.parametrize("step_s", [0.1, 600.0])
def test_the_time_shown_is_three_steps_or_more(step_s: float) -> None:
    lanes = Lanes()
    for second in range(0, 3000, 5):
        lanes.add([Span("learner", "learn", second, second + 4.0)])
    shown = lanes.shown(step_s)
    seconds, words = (1800.0, "30 min") if step_s > 60 else (LANES_S, "180 s")
    assert (shown["seconds"], shown["title"]) == (seconds, f"the last {words}")
    assert shown["rows"][0]["share"] == pytest.approx(0.8, abs=0.01)
    assert lanes.shown(60.0, finished=2000.0)["title"] == "180 s up to the end of the last step"
    assert lanes.shown(60.0, finished=2000.0)["rows"][0]["spans"][-4:] == [17500, 17900, 0, 400]


@pytest.mark.parametrize("engines", [2, 64, 500])
def test_lanes_are_bounded_whatever_engines_do(engines: int) -> None:
    """A stretch of 0.1 s each 0.2 s, for ten minutes: 1.5 million of them at 500 engines, of which ten seconds here."""
    lanes, seconds = Lanes(), 600 if engines < 500 else 10
    for second in range(seconds):
        lanes.add(dense_spans(float(second), 1.0, engines))
    shown = lanes.shown(STEP_S)
    spans = sum(len(row["spans"]) // 4 for row in shown["rows"])
    assert len(shown["rows"]) == engines and engines <= spans <= BOXES
    assert len(json.dumps(shown, separators=(",", ":"))) < 30 * BOXES + 80 * engines
    assert all(row["share"] == pytest.approx(0.5, abs=0.01) for row in shown["rows"])


def test_whatever_the_timeline_names_is_a_wait_or_has_a_colour() -> None:
    names = [
        *(name for _, name in CALLS.values()),
        *PARTS,
        *ON_LANE,
        VERIFY,
        WRITE,
        "sample",
        "score",
        "start",
        "probe",
    ]
    assert [name for name in names if is_work(name) != (name in COLOURS)] == []


def test_a_run_that_goes_on_and_its_files_are_the_same_page() -> None:
    """The first step takes as long as three others, and a sink is given what is new in as many batches as there are
    samples and steps, each cut where the driver cuts it."""
    num, recipe = 12, Recipe(run=RunConfig(steps=12, max_policy_lag=1))
    steps = [replace(a_step(step), wall_s=30.0 if step == 2 else STEP_S) for step in range(num)]
    samples = [a_sample(2.0 * place) for place in range(5 * num)]
    spans = [span for step in range(num) for span in (*spans_of(step), *dense_spans(STEP_S * step, 3.0, 2))]
    probe = ProbeRecord(num, BEGAN + STEP_S * num + 0.1, "identity", {"selfname": Rate(3, 96)}, 12, 8)
    events = [(one.time, Batch(one.time, samples=(one,))) for one in samples]
    events += [(one.time + 0.01, Batch(one.time + 0.01, steps=(one,))) for one in steps]
    events += [(probe.time, Batch(probe.time, probes=(probe,)))]
    events.sort(key=lambda event: event[0])
    live = RunCharts("run", recipe)
    for (_, batch), cut in zip(events, pieces(spans, [time for time, _ in events]), strict=True):
        live.add(replace(batch, spans=tuple(cut)))
    live.add(Batch(probe.time + 0.1, ended=FINISHED))
    ours, files = (
        json.loads(charts.shown({}))
        for charts in (live, charts_of(Seen("run", recipe, steps, [probe], samples, spans)))
    )
    for panel, own, other in zip(PANELS, ours.pop("charts"), files.pop("charts"), strict=True):
        assert own == other, panel.title
    assert ours == files
