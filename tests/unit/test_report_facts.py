"""The report of runs on contexts of one's own: every rate of the probe and of each arm, and nothing published."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from cluster.commands.reproduce import AXES, RECIPES
from cluster.config import load_recipe
from cluster.report.groups import group_runs
from cluster.report.numbers import difference
from cluster.report.runs import read_runs
from cluster.report.write import write_report
from cluster.run.record import ProbeRecord, append_probe
from evidence.intervals import newcombe, wilson
from rollout.probe import Rate
from tests.fakes import fake_run

FACTS = {"N3": 60, "N1": 2, "N2": 50, "N11": 1}  # right answers of 160 at the end


def rates(facts: int, neighbours: int) -> dict[str, Rate]:
    parts = {"facts": Rate(facts, 160), "neighbours": Rate(neighbours, 80), "ordinary": Rate(40, 48)}
    whole = Rate(sum(rate.k for rate in parts.values()), sum(rate.n for rate in parts.values()))
    return {"correct": whole, **{f"correct:{tag}": rate for tag, rate in parts.items()}}


def facts_run(root: Path, arm: str) -> Path:
    tables: dict[str, Any] = dataclasses.asdict(load_recipe(RECIPES / f"{arm}-facts.toml"))
    folder = fake_run(root / f"{arm}-facts-seed0", {}, **json.loads(json.dumps(tables)))
    for step, probe in ((0, rates(0, 80)), (96, rates(FACTS[arm], 70))):
        append_probe(folder / "probes.jsonl", ProbeRecord(step, 0.0, "facts", probe, 72, 4))
    return folder


def test_the_report_has_every_rate_of_each_arm(tmp_path: Path) -> None:
    assert {f"{arm}-facts" for arm in FACTS} == set(AXES["facts"])
    folders = [facts_run(tmp_path, arm) for arm in FACTS]
    (group,) = group_runs(read_runs(folders))
    assert (group.axis, group.rates) == ("context", tuple(rates(0, 0)))
    page = write_report(folders, tmp_path / "report").with_name("report.md").read_text("utf-8")
    found = json.loads((tmp_path / "report" / "summary.json").read_text("utf-8"))["tasks"][0]
    (table,) = (table for table in found["tables"] if table["key"] == "rates")
    by_setting = {row["setting"]: row for row in table["rows"]}
    learned = by_setting["0.5, pos, KL, system"]
    assert learned["correct:facts"]["value"] == FACTS["N3"] / 160
    assert learned["correct:facts"]["interval"] == list(wilson(FACTS["N3"], 160))
    assert learned["correct:neighbours-change"]["interval"] == list(newcombe(70, 80, 320, 320)), (
        "the base model of four runs"
    )
    assert by_setting["0.5, neg, KL, system"]["correct:facts"]["value"] == FACTS["N11"] / 160
    assert by_setting["0, all, no KL, system"]["correct:facts"]["value"] == FACTS["N1"] / 160
    assert "figures/facts-correct-facts.svg" in page and "pass@1" not in page and "self-name" not in page
    for name in ("correct", "correct-facts", "correct-neighbours", "correct-ordinary-curve"):
        assert (tmp_path / "report" / "figures" / f"facts-{name}.svg").is_file()
    (curves,) = (found["probes"][pool.arm.code] for pool in group.pools if pool.arm.family == "pos")
    assert len(curves["correct:ordinary"]) == 2


def test_the_change_is_that_of_the_base_model(tmp_path: Path) -> None:
    (group,) = group_runs(read_runs([facts_run(tmp_path, "N3")]))
    (pool,) = group.pools
    assert pool.arm.label == "guided 0.5, pos, KL, system"
    change = difference(pool.final("correct:facts"), group.base.final("correct:facts"))
    assert change and change.value == FACTS["N3"] / 160
