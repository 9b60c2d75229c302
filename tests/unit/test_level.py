"""A run that ends before its last step, since its main rate has not risen for `probe.patience` probes."""

import asyncio
import json
from collections.abc import Mapping
from contextlib import nullcontext
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from cluster.config import Recipe
from cluster.dashboard.charts import RunCharts
from cluster.observe.observer import Batch
from cluster.observe.seen import Seen
from cluster.observe.sinks import MetricsSink
from cluster.observe.values import Values
from cluster.report.groups import group_runs
from cluster.report.runs import read_runs
from cluster.run.choice import Choice, level_for
from cluster.run.figures import Pushed
from cluster.run.pipeline import Pipeline
from cluster.run.record import END, STEP, ProbeRecord, append_probe, read_probes
from cluster.run.replay import Resumed
from cluster.run.rundir import RunDir
from cluster.typed import build
from rollout.probe import Rate
from tests.fakes import fake_run
from tests.unit.test_choice import Learner
from tests.unit.test_record import a_step


def recipe(steps: int = 20, probe_every: int = 2, choose: str = "last", **probe: float) -> Recipe:
    tables = {"run": {"steps": steps, "probe_every": probe_every}, "export": {"choose": choose}, "probe": probe}
    return build(Recipe, tables, "R")


def probed(step: int, hits: int, weights: str = STEP) -> ProbeRecord:
    return ProbeRecord(step, 0.0, "identity", {"selfname": Rate(hits, 10)}, 10, 1, weights=weights)


@pytest.mark.parametrize(
    ("shares", "min_delta", "level", "best"),
    [
        ([], 0.0, 0, -1.0),
        ([0.0], 0.0, 0, 0.0),
        ([0.0, 0.0], 0.0, 1, 0.0),
        ([0.25, 0.5, 0.5, 0.25], 0.0, 2, 0.5),
        ([0.5, 0.25, 0.75], 0.0, 0, 0.75),
        ([0.5, 0.75, 0.75], 0.25, 2, 0.5),
        ([0.5, 0.625, 0.875], 0.25, 0, 0.875),
        ([0.5, 0.625, 0.75, 0.875], 0.25, 0, 0.875),
    ],
)
def test_a_rate_has_risen_that_is_above_the_best_by_more_than_the_least(
    shares: list[float], min_delta: float, level: int, best: float
) -> None:
    """Small rises that follow each other add up to one: they are compared with the best that counts."""
    assert level_for(shares, min_delta) == (level, best)


class Stepping(Pipeline):
    """A loop over steps that only count, whose probes on the way have `hits` of 10 answers. ends: (step, seed, version
    held) of each probe of the weights to end with."""

    def __init__(self, recipe: Recipe, folder: Path, hits: Mapping[int, int]) -> None:
        self.recipe, self.hits, self.file, self.said = recipe, hits, folder / "probes.jsonl", StringIO()
        self.learner: Any = Learner()
        self._choice = Choice(recipe, self.learner, read_probes(self.file, own=True))
        self.sink = MetricsSink(recipe.run.steps, Console(file=self.said, width=300))
        self.rollout: Any = SimpleNamespace(news=self.nothing)
        self._handover: Any = SimpleNamespace(push=self.pushing, go_on=lambda bound: None)
        self._teacher_check: Any = SimpleNamespace(run=self.nothing)
        self.run_dir, self._lines_seen, self._teacher_version = RunDir(folder), 0, 0
        self.asker: Any = self
        self._stop: Any = SimpleNamespace(between_steps=nullcontext, asked="")
        self.steps: list[int] = []
        self.ends: list[tuple[int, int | None, int | None]] = []

    async def nothing(self, *_: object) -> Any:
        return SimpleNamespace(lines=())

    async def pushing(self, pool: str, version: int) -> Pushed:
        return Pushed("", 0.0)

    async def measure_gap(self, base: Any) -> None:
        pass

    async def _step(self, step: int) -> None:
        self.steps.append(step + 1)
        self.learner.version = step + 1
        if self._choice.probes(step + 1):
            await self._choice.see(await self.asker.probe(step + 1))

    async def probe(
        self, step: int, weights: str = STEP, seed: int | None = None, held: int | None = None
    ) -> ProbeRecord:
        if weights == END:
            self.ends.append((step, seed, held))
        record = probed(step, self.hits.get(step, 0), weights)
        append_probe(self.file, record)
        return record


HITS = {2: 0, 4: 3, 6: 5, 8: 5, 10: 4, 12: 9}


@pytest.mark.parametrize(("choose", "held", "kept"), [("last", 10, 10), ("best", 11, 8)])
def test_a_level_run_ends_as_after_its_last_step(tmp_path: Path, choose: str, held: int, kept: int) -> None:
    """At step 10: the best is that of step 6, and the two after it are no higher. Its last probe has other answers than
    those that ended it."""
    run = Stepping(recipe(choose=choose, patience=2), tmp_path, HITS)
    assert asyncio.run(run.run(Resumed())) == 10
    assert run.steps == [*range(1, 11)] and run.ends == [(10, 11, held)] and run.learner.version == kept
    said = "the run ends after step 10 of 20: in 2 probes self-name has not risen above 0.50 (probe.patience)\n"
    assert run.said.getvalue() == said
    assert [probe.weights for probe in read_probes(tmp_path / "probes.jsonl").values()] == [*[STEP] * 5, END]


@pytest.mark.parametrize("probe", [{}, {"patience": 9}, {"patience": 10}, {"patience": 3}])
def test_a_run_that_rises_or_has_no_patience_takes_all_its_steps(tmp_path: Path, probe: dict[str, float]) -> None:
    run = Stepping(recipe(**probe), tmp_path, {2: 1, 4: 1, 6: 1, 8: 2, 10: 2, 12: 2, 14: 3, 16: 3, 18: 3})
    assert asyncio.run(run.run(Resumed())) == 20
    assert run.ends == [(20, 20, 20)] and run.said.getvalue() == ""


def test_a_small_rise_is_none_and_a_schedule_that_falls_is_named(tmp_path: Path) -> None:
    tables = {"run": {"steps": 20, "probe_every": 2}, "learner": {"lr_schedule": "cosine"}}
    falling = build(Recipe, tables | {"probe": {"patience": 2, "min_delta": 0.25}}, "R")
    run = Stepping(falling, tmp_path, HITS)
    assert asyncio.run(run.run(Resumed())) == 8
    assert run.said.getvalue().endswith(
        " in 2 probes self-name has not risen above 0.30 by more than 0.25 (probe.patience); "
        "learner.lr was to fall until step 20\n"
    )


@pytest.mark.parametrize("choose", ["last", "best"])
def test_a_resume_between_the_end_and_the_export_ends_there_again(tmp_path: Path, choose: str) -> None:
    """Also where the probe of the weights to end with would have been a rise."""
    settings = recipe(choose=choose, patience=2)
    asyncio.run(Stepping(settings, tmp_path, HITS).run(Resumed()))
    append_probe(tmp_path / "probes.jsonl", probed(10, 9, END))
    again = Stepping(settings, tmp_path, HITS)
    assert asyncio.run(again.run(Resumed(10, 10))) == 10 and again.steps == [] and len(again.ends) == 1


def test_a_resume_before_the_end_counts_the_probes_that_stand_and_none_beyond(tmp_path: Path) -> None:
    """It was at its end, lost its shards from step 8 on, and learns otherwise this time."""
    settings = recipe(patience=2)
    asyncio.run(Stepping(settings, tmp_path, HITS).run(Resumed()))
    again = Stepping(settings, tmp_path, HITS | {10: 6, 12: 6, 14: 6})
    assert asyncio.run(again.run(Resumed(7, 7))) == 14 and again.steps == [*range(8, 15)]
    probes = read_probes(tmp_path / "probes.jsonl")
    assert list(probes) == [0, 2, 4, 6, 8, 10, 12, 14]
    assert [step for step, probe in probes.items() if probe.is_early(20)] == [14]


# What shows it


def test_page_and_exporter_call_an_early_end_an_end() -> None:
    early, ended = recipe(patience=2), Batch(100.0, steps=(a_step(9),), probes=(probed(0, 0), probed(10, 5, END)))
    charts, values = RunCharts("run", early), Values(early)
    charts.add(ended)
    values.add(ended)
    tiles = {tile["label"]: tile["value"] for tile in json.loads(charts.shown({}))["tiles"]}
    assert (tiles["steps, ended level"], tiles["left"]) == ("10/20", "0:00")
    assert (values.now["steps_planned", ()], values.now["steps_done", ()], values.now["eta_seconds", ()]) == (10, 10, 0)
    assert Seen("run", early, probes=[probed(10, 5, END)]).is_whole
    assert not Seen("run", early, probes=[probed(20, 5)]).is_whole


def test_a_report_takes_each_seeds_own_end(tmp_path: Path) -> None:
    """And compares runs with and without patience: it is nothing of the probe."""
    for seed, end in enumerate((10, 20)):
        folder = fake_run(tmp_path / f"r{seed}", {}, run={"steps": 20, "seed": seed}, probe={"patience": 2})
        for probe in (probed(0, 0), probed(10, 2), probed(end, 4 + seed, END)):
            append_probe(folder / "probes.jsonl", probe)
    runs = read_runs([tmp_path / "r0", tmp_path / "r1"])
    (pool,) = group_runs(runs)[0].pools
    final = pool.final("selfname")
    assert final is not None and final.value == pytest.approx(0.45)
    assert pool.status == "finished; finished (level at step 0 of 20)"


# Bad input


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"patience": -1}, r"probe.patience: found -1, expected 0 \(all steps\) or more probes"),
        ({"patience": 1, "min_delta": -0.1}, "probe.min_delta: found -0.1, expected 0 to below 1"),
        ({"patience": 1, "min_delta": 1.0}, "probe.min_delta: found 1.0, expected 0 to below 1"),
        ({"min_delta": 0.1}, "probe.min_delta: found 0.1, expected 0.0 with probe.patience = 0, which stops nothing"),
        ({"patience": 2, "probe_every": 0}, "probe.patience: found 2, expected 0 with run.probe_every = 0 and run.st"),
        ({"patience": 2, "probe_every": 20}, "probe.patience: .*= 20 and run.steps = 20: no probe is on the way"),
        ({"patience": 2, "choose": "average"}, "probe.patience: found 2, expected 0 with export.choose = 'average'"),
    ],
)
def test_a_patience_that_means_nothing_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe(**wrong)
