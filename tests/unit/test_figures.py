"""The table of figures: names by Prometheus' rules, and what is read from records stays within it."""

import re
from dataclasses import replace

import pytest

from cluster.config import Recipe
from cluster.observe.figures import COUNTER, FIGURES, GAUGE, PREFIX, table
from cluster.observe.readings import Reading, of_probe, of_recipe, of_sample, of_span, of_step, of_wait
from cluster.observe.waits import Window
from evidence.telemetry import Sample, Span
from rollout.tally import FIGURES as COUNTED
from rollout.tasks.boxed_pool import Verdicts
from tests.unit.test_observer import SAMPLE
from tests.unit.test_record import a_probe, a_step

UNITS = {"s": "_seconds", "nats": "_nats", "bytes": "_bytes"}


@pytest.mark.parametrize("name", FIGURES)
def test_a_name_follows_the_rules_of_prometheus(name: str) -> None:
    row = FIGURES[name]
    assert re.fullmatch(r"[a-z][a-z0-9_]*", PREFIX + name) and "__" not in name
    assert row.kind in (COUNTER, GAUGE) and name.endswith("_total") == (row.kind == COUNTER)
    base = name.removesuffix("_total")
    if name != "learner_loss":
        assert base.endswith(UNITS.get(row.unit, "")), f"expected the unit {row.unit} at its end"
    for label in row.labels:
        assert re.fullmatch(r"[a-z][a-z_]*", label) and label not in ("run", "step", "prompt", "group", "rollout")
    assert len(row.meaning) > 8 and f"| `{PREFIX}{name}` |" in table({})


def test_everything_in_the_table_is_read_from_a_record() -> None:
    step = a_step(2, truncated=1, verdicts=Verdicts(2), nonfinite_rollouts=5, nonfinite_updates=6)
    engine = replace(SAMPLE.engines["student engine 0"], stats=dict.fromkeys(COUNTED, 1.0))
    readings = [
        *of_recipe(Recipe()),
        *of_step(step, 8),
        *of_probe(a_probe(), is_first=True),
        *of_span(Span("driver", "probe", 1.0, 2.5)),
        *of_sample(replace(SAMPLE, engines={"e": engine})),
        *of_wait(Window(1.0, 3.0, {("rollout", "lag"): 0.75})),
    ]
    assert {reading.name for reading in readings} == set(FIGURES) - {
        "run_running",
        "run_stopped",
    }  # which no record says
    found = {(reading.name, *reading.labels.values()): reading.value for reading in readings}
    assert found["eta_seconds",] == 4.0 * 5 and found["responses_total", "length"] == 1
    assert found["rollouts_total", "trained"] == 2 and found["rollouts_total", "dropped"] == 3
    assert found["policy_lag_steps", "max"] == 2 and found["policy_lag_steps", "min"] == 1
    assert found["lane_busy_seconds_total", "driver", "probe"] == 1.5
    assert found["wait_seconds_total", "rollout", "lag"] == 0.75
    assert found["kept_ratio", "plain"] == 3 / 7
    assert found["learner_memory_bytes", "1", "host"] == 4 << 30
    assert found["rollouts_total", "nonfinite"] == 5 and found["learner_nonfinite_updates_total",] == 6


def test_no_two_names_are_one_family_of_openmetrics() -> None:
    families = [name.removesuffix("_total") for name in FIGURES]
    assert len(set(families)) == len(families)


def test_what_a_record_does_not_say_is_not_told() -> None:
    bare = a_step(0, time=None, wall_s=None, stages={}, stats={}, loss=None, metrics={}, rewards=None, mismatch=None)
    names = {reading.name for reading in of_step(bare, 4)}
    assert not names & {"step_seconds", "eta_seconds", "kept_ratio", "learner_loss", "responses_total", "mismatch_nats"}
    assert [reading.name for reading in of_sample(Sample(1.0, fault="late"))] == ["service_up"]
    with pytest.raises(AssertionError):
        Reading("kept_ratio", 1.0, {})
