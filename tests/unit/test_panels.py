"""The page's charts against the table of figures: each shows what is reported under the names that it gives."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from cluster.config import Recipe, RunConfig
from cluster.dashboard.charts import RunCharts
from cluster.dashboard.panels import PANELS, Panel, charts
from cluster.observe.figures import FIGURES, PREFIX
from cluster.observe.observer import Batch
from cluster.observe.readings import of_wait
from cluster.observe.sinks import MetricsSink
from cluster.observe.values import Values
from cluster.observe.waits import Window
from cluster.run.record import ProbeRecord
from evidence.advantage import RewardSums
from rollout.probe import Rate
from tests.observed import BEGAN, a_sample, a_step, spans_of
from tests.pages import made

# Figures that no chart is of: tiles, lanes and sentences show them, a chart shows the same otherwise, or Grafana alone.
NO_CHART = {
    "run_running", "run_stopped", "steps_planned", "steps_done", "last_step_timestamp_seconds",
    "last_progress_timestamp_seconds", "eta_seconds",
    "stage_worked_tokens_total", "stage_busy_seconds_total", "oldest_group_seconds", "verdicts_total", "service_up",
    "engine_up", "engine_waiting_requests", "engine_preemptions_total", "probe_first_ratio",
}  # fmt: skip
STEP = replace(a_step(3), rewards=RewardSums(12.0, 32, 1), refused=2, canary_bound=0.08)
BEFORE, SAMPLE = a_sample(10.0), a_sample(12.0)
PROBE = ProbeRecord(3, BEGAN, "identity", {"selfname": Rate(31, 96), "capability": Rate(40, 96)}, 12, 8)
WINDOW = Window(BEGAN, BEGAN + 2.0, {("rollout", "lag"): 1.5, ("learner", "rollouts"): 0.5})
RECORDS: dict[str, tuple[Any, ...]] = {
    "step": (STEP, Recipe()), "sample": (SAMPLE, BEFORE), "probe": (PROBE,), "wait": (WINDOW,),
    "push": (STEP, spans_of(3)),
}  # fmt: skip
Reported = Callable[..., dict[tuple[str, ...], float]]  # by the labels' values, of a figure and of labels that it has


def reported(batch: Batch, window: Window | None = None) -> Reported:
    """What the exporter has after the batch."""
    values = Values(Recipe())
    values.add(batch)
    if window is not None:
        values.read(of_wait(window))

    def of(figure: str, **wanted: str) -> dict[tuple[str, ...], float]:
        rows = {labels: value for (name, labels), value in values.now.items() if name == figure}
        known = {labels: value for labels, value in rows.items() if wanted.items() <= dict(labels).items()}
        return {tuple(word for key, word in labels if key not in wanted): value for labels, value in known.items()}

    return of


SAMPLES = Batch(0.0, samples=(BEFORE, SAMPLE), spans=tuple(spans_of(3)), steps=(STEP,), probes=(PROBE,))
NOW, THEN = reported(SAMPLES, WINDOW), reported(Batch(0.0, samples=(BEFORE,)))


def growth(figure: str) -> dict[str, float]:
    """Between the two samples, by engine."""
    then = THEN(figure)
    return {engine: value - then[engine, pool] for (engine, pool), value in NOW(figure).items()}


def named(found: Mapping[tuple[str, ...], float]) -> dict[str, float]:
    return {labels[0]: value for labels, value in found.items()}


def of_a_push() -> dict[str, float]:
    lanes = NOW("lane_busy_seconds_total")
    checks = {"check": lanes["driver", "check"], "canary": lanes["driver", "canary"] + lanes["learner", "canary"]}
    return {what: seconds for (lane, what), seconds in lanes.items() if lane == "push"} | checks


def shares(service: str) -> dict[str, float]:
    return {what: seconds / 2.0 for (what,), seconds in NOW("wait_seconds_total", service=service).items()}


def the_probes() -> dict[str, float]:
    return {
        rate if bound == "value" else f"{rate} {bound}": value for (bound, rate), value in NOW("probe_ratio").items()
    }


def one(figure: str, **labels: str) -> float:
    (value,) = NOW(figure, **labels).values()
    return value


# What a chart that puts several figures together, or one in another way, shows of its record.
MADE: dict[str, Callable[[], dict[str, float]]] = {
    "Tokens a second while at work": lambda: {
        stage: one("stage_tokens", stage=stage) / one("stage_seconds", stage=stage)
        for stage in ("sample", "score", "learn")
    },
    "What the rollout service waited for": lambda: shares("rollout"),
    "What the learner waited for": lambda: shares("learner"),
    "Tokens sampled a second": lambda: {n: v / 2.0 for n, v in growth("engine_generated_tokens_total").items()},
    "Prompt tokens from the prefix cache": lambda: {
        name: value / growth("engine_prompt_tokens_total")[name]
        for name, value in growth("engine_cached_tokens_total").items()
    },
    "Rollouts that are not trained": lambda: {
        "dropped": one("rollouts_total", outcome="dropped"), "skipped": one("rollouts_total", outcome="skipped"),
        "refused prompts": one("prompts_refused_total"), "not finite": one("rollouts_total", outcome="nonfinite"),
    },
    "A push by part": of_a_push,
    "Probe without context": the_probes,
    "Response length": lambda: dict.fromkeys(
        ("all", "guided", "plain"), one("response_tokens_total") / sum(NOW("responses_total").values())
    ),
    "Responses cut at the limit": lambda: {
        "cut": one("responses_total", reason="length") / sum(NOW("responses_total").values())
    },
    "Versions that rollouts were behind": lambda: {
        "oldest": one("policy_lag_steps", bound="max"), "newest": one("policy_lag_steps", bound="min"),
    },
    "Peak memory of the learner": lambda: {
        kind: max(NOW("learner_memory_bytes", kind=kind).values()) / 2**30 for kind in ("host", "device")
    },
    "Canary": lambda: {"canary": one("canary_nats"), "tolerance": one("canary_tolerance_nats")},
}  # fmt: skip


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.title)
def test_a_chart_shows_what_is_reported_under_its_figures(panel: Panel) -> None:
    shown = {name: value for name, value in panel.read(*RECORDS[panel.of]).items() if value is not None}
    if panel.title in MADE:
        expected = MADE[panel.title]()
        assert {name: value for name, value in shown.items() if value} == pytest.approx(
            {name: value for name, value in expected.items() if value}
        )
        return
    (figure,) = panel.figures.split()
    found = NOW(figure)
    if len(found) == 1:
        assert list(shown.values()) == pytest.approx(list(found.values()))
    else:
        assert shown == pytest.approx(named(found))


def test_console_page_and_exporter_say_the_same_time_left() -> None:
    """Of 46 steps at 95.5 s each, with the probes and checkpoints between them; the last one took 10 s."""
    step, recipe, said = replace(a_step(3), pace_s=95.5), Recipe(run=RunConfig(steps=50)), StringIO()
    MetricsSink(50, Console(file=said)).show_step(step)
    charts_, values, batch = RunCharts("run", recipe), Values(recipe), Batch(BEGAN, steps=(step,))
    charts_.add(batch)
    values.add(batch)
    tiles = {tile["label"]: tile["value"] for tile in json.loads(charts_.shown({}))["tiles"]}
    assert values.now["eta_seconds", ()] == 46 * 95.5
    assert said.getvalue().split()[-2:] == ["left", tiles["left"]] == ["left", "1:13:13"]
    assert replace(step, pace_s=None).left_s(50) == 46 * 10.0  # an older line


def test_nothing_that_is_said_moves_the_terminal() -> None:
    """A column's name, say, or a key of a turn, which a start names and somebody else may have written."""
    said = StringIO()
    MetricsSink(1, Console(file=said)).say("columns that nothing reads: \x1b]0;mine\x07\x1b[2J, \u202eids\nmore")
    assert said.getvalue() == "columns that nothing reads:  ]0;mine  [2J,  ids\nmore\n"


def test_every_figure_is_on_a_chart_or_known_not_to_be() -> None:
    assert set(charts()) | NO_CHART == set(FIGURES) and not set(charts()) & NO_CHART
    assert all(panel.figures for panel in PANELS) and len({panel.title for panel in PANELS}) == len(PANELS)
    assert set(MADE) < {panel.title for panel in PANELS}


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.title)
def test_a_charts_unit_is_its_figures(panel: Panel) -> None:
    if panel.title not in MADE or panel.title == "Canary":
        figure = FIGURES[panel.figures.split()[0]]
        assert panel.unit.startswith(figure.unit)
        assert (panel.unit == "share") == panel.figures.endswith("_ratio")


def test_the_table_on_the_page_names_the_charts() -> None:
    assert json.dumps(charts()).count("wait_seconds_total") == 1
    row = next(line for line in made("metrics.md").splitlines() if line.startswith(f"| `{PREFIX}wait_seconds_total`"))
    assert row.endswith("| What the rollout service waited for, What the learner waited for |")
