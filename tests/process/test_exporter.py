"""What the endpoint of a run's Ray is told, from the start of its services to their end."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.config import Recipe, RunConfig
from cluster.fleet.assembly import Services
from cluster.fleet.calls import Died
from cluster.observe.config import ObserveConfig
from cluster.observe.figures import COUNTER, FIGURES, PREFIX
from cluster.observe.observer import Batch
from cluster.observe.ray_sink import RaySink
from cluster.observe.sinks import MetricsSink
from cluster.observe.values import TIMES, Values
from cluster.run.record import ProbeRecord, append_probe, append_step
from cluster.run.rundir import RunDir
from cluster.run.start import _serve
from cluster.run.watch import exporting
from evidence.advantage import RewardSums
from evidence.telemetry import Sample
from rollout.probe import Rate
from rollout.stages import StageTime
from tests.observed import BEGAN, STEP_S, a_sample, a_step, observed_run

Told = dict[tuple[str, ...], float]  # the last value by a figure's name and its labels' values


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """By a Ray that keeps what it is told until it is looked at."""
    found: Told = {}

    class Metric:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            self._name, self._keys = name.removeprefix(PREFIX), tag_keys

        def set(self, value: float, tags: dict[str, str]) -> None:
            assert set(tags) == set(self._keys)
            found[self._name, *(tags[key] for key in self._keys)] = value

        inc = set

    monkeypatch.setattr("ray.util.metrics.Gauge", Metric)
    monkeypatch.setattr("ray.util.metrics.Counter", Metric)
    return found


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def resumed_run(folder: Path) -> Path:
    """Of 9 steps it has 4, and 2 probes."""
    run = observed_run(folder, steps=9)
    (run / "metrics.jsonl").unlink()
    (run / "probes.jsonl").unlink()
    for step in range(4):
        append_step(run / "metrics.jsonl", a_step(step))
    for at, count in ((0, 40), (3, 20)):
        rates = {"capability": Rate(count, 96)}
        append_probe(run / "probes.jsonl", ProbeRecord(at, BEGAN, "identity", rates, 12, 8))
    return run


RECIPE = Recipe(run=RunConfig(steps=9), observe=ObserveConfig(every_s=0.01))


def test_what_stands_of_a_run_is_told_again_and_again_before_its_loop_begins(tmp_path: Path, told: Told) -> None:
    sink = RaySink(resumed_run(tmp_path / "r"), RECIPE)
    with sink.telling():
        for _ in range(2):
            with sink._lock:  # between two rounds
                told.clear()
            wait_until(lambda: ("probe_first_ratio", "r", "capability", "high") in told)
    assert told["steps_done", "r"] == 4 and told["steps_planned", "r"] == 9 and told["run_running", "r"] == 1
    assert told["step_seconds", "r"] == STEP_S and told["stage_seconds", "r", "push"] == 0.8
    assert told["probe_first_ratio", "r", "capability", "value"] == 40 / 96
    assert told["probe_ratio", "r", "capability", "value"] == 20 / 96
    assert not [name for name, *_ in told if FIGURES[name].kind == COUNTER]
    assert not [name for name, *_ in told if name in TIMES], "no step is awaited while services start"


def test_from_its_loops_begin_on_a_step_of_a_run_is_awaited(tmp_path: Path, told: Told) -> None:
    run = resumed_run(tmp_path / "r")
    sink = RaySink(run, RECIPE)
    with sink.telling():
        wait_until(lambda: ("probe_first_ratio", "r", "capability", "high") in told)
    append_step(run / "metrics.jsonl", a_step(4))  # learned again from its shard
    sink.write(Batch(BEGAN + 900.0, samples=(a_sample(900.0),)))
    assert {told[name, "r"] for name in TIMES} == {BEGAN + 900.0} and told["steps_done", "r"] == 5
    new = ProbeRecord(5, BEGAN, "identity", {"capability": Rate(10, 96)}, 12, 8)
    sink.write(Batch(BEGAN + 960.0, steps=(replace(a_step(5), time=BEGAN + 950.0),), probes=(new,)))
    assert [told[name, "r"] for name in TIMES] == [BEGAN + 950.0] * 2 and told["steps_done", "r"] == 6
    assert told["rollouts_total", "r", "trained"] == 31, "of this process"
    assert told["probe_first_ratio", "r", "capability", "value"] == 40 / 96


def test_a_run_whose_first_step_has_not_come_has_done_none(tmp_path: Path, told: Told) -> None:
    RaySink(tmp_path / "new", RECIPE).write(Batch(BEGAN))
    assert told["steps_done", "new"] == 0 and told["last_step_timestamp_seconds", "new"] == BEGAN


def test_a_damaged_folder_is_said_by_the_sink_alone(tmp_path: Path, told: Told) -> None:
    run = resumed_run(tmp_path / "r")
    (run / "metrics.jsonl").write_text("{}\n")
    sink = RaySink(run, RECIPE)
    with sink.telling(), pytest.raises(ValueError, match=r"metrics\.jsonl: line 1"):
        sink.write(Batch(BEGAN))
    assert told == {}


def test_a_run_whose_services_start_has_not_vanished(
    tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At first, at a resume, and after the death of one of them."""

    @asynccontextmanager
    async def start(*_: object) -> AsyncIterator[Services]:
        await asyncio.to_thread(wait_until, lambda: told.get(("steps_done", "r")) == 4)
        raise Died("a rank")
        yield

    monkeypatch.setattr("cluster.run.start.running", start)
    folder, parts = RunDir(resumed_run(tmp_path / "r")), (None, None, None, None, lambda _: "failed")
    with pytest.raises(Died):
        asyncio.run(_serve(RECIPE, folder, MetricsSink(9), True, *parts))  # type: ignore[arg-type]
    told.clear()
    off = replace(RECIPE, observe=ObserveConfig(ray=False))
    with exporting(off, folder) as exporters:
        assert exporters == [] and told == {}


def now(values: Values) -> Told:
    return {(name, *(word for _, word in labels)): value for (name, labels), value in values.now.items()}


STUDENT, TEACHER = ("student engine 0", "student"), ("teacher engine 0", "teacher")


def test_of_a_service_that_is_silent_its_engines_are_too_and_their_load_is_not_known() -> None:
    values, known = Values(RECIPE), set(now(Values(RECIPE)))
    values.add(Batch(0.0, samples=(a_sample(10.0),)))
    before = now(values)
    assert before["service_up",] == before["engine_up", *STUDENT] == 1
    values.add(Batch(0.0, samples=(Sample(BEGAN + 12.0, fault="no answer within 5 s"),)))
    counters = {key for key in before if FIGURES[key[0]].kind == COUNTER}
    up = {("service_up",), ("engine_up", *STUDENT), ("engine_up", *TEACHER)}
    assert set(now(values)) == known | counters | up and {now(values)[key] for key in up} == {0.0}
    values.add(Batch(0.0, samples=(a_sample(10.0),)))
    assert now(values) == before


def test_the_load_of_an_engine_that_is_silent_is_not_known() -> None:
    values, sample = Values(RECIPE), a_sample(10.0)
    name, _ = STUDENT
    mute = replace(sample.engines[name], up=False, stats={})
    values.add(Batch(0.0, samples=(sample, replace(sample, engines=sample.engines | {name: mute}))))
    found = now(values)
    assert found["engine_up", *STUDENT] == 0 and found["engine_up", *TEACHER] == 1
    assert ("engine_running_requests", *STUDENT) not in found and ("engine_kv_cache_usage_ratio", *STUDENT) not in found
    assert found["engine_running_requests", *TEACHER] == 8 and found["engine_generated_tokens_total", *STUDENT] == 900


def test_once_a_run_has_ended_nothing_is_said_of_its_engines() -> None:
    values = Values(RECIPE)
    values.add(Batch(0.0, samples=(a_sample(10.0),), steps=(a_step(1),)))
    values.add(Batch(0.0, ended="finished"))
    gauges = {name for name, *_ in now(values) if FIGURES[name].kind != COUNTER}
    assert not [name for name in gauges if name.startswith(("engine_", "service_", "group"))]
    assert "step_seconds" in gauges


@pytest.mark.parametrize("stands", [False, True], ids=["under way", "resumed"])
def test_a_figure_of_the_last_step_is_not_of_one_before_it(stands: bool) -> None:
    step, rewards = a_step(1), RewardSums(12.0, 32, 1)
    refreshed = replace(step, stages=step.stages | {"refresh": StageTime(3.0, 0)}, rewards=rewards)
    values = Values(RECIPE, [refreshed] if stands else [])
    if not stands:
        values.add(Batch(0.0, steps=(refreshed,)))
    assert now(values)["stage_seconds", "refresh"] == 3 and now(values)["reward_mean",] == 12 / 32
    values.add(Batch(0.0, steps=(replace(a_step(2), stats={"all": step.stats["all"]}),)))
    found = now(values)
    assert found["steps_done",] == 3 and found["canary_tolerance_nats",] == RECIPE.weights.canary_tolerance
    for gone in ("stage_seconds", "refresh"), ("stage_tokens", "refresh"), ("reward_mean",), ("kept_ratio", "guided"):
        assert gone not in found
    assert ("kept_ratio", "all") in found and (("stage_busy_seconds_total", "refresh") in found) == (not stands)
