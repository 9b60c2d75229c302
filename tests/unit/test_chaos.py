"""What the kills of `make chaos` are drawn from, and what is made of a run's folder and lines. No run."""

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.run.rundir import RunDir
from evidence.manifest import Manifest
from evidence.records import ShardInfo
from tests.chaos.__main__ import report
from tests.chaos.outcome import Fault, Outcome, read
from tests.chaos.schedule import (
    GAP,
    LATEST_S,
    ONE_HOST,
    PARALLEL,
    PROBE,
    RUNS,
    START,
    STEPS,
    THREE_HOSTS,
    kind_of,
    schedule,
    shots,
)
from tests.chaos.summary import tables
from tests.chaos.verdict import Hit, fault_of, learned_once, proven, trained_is_written

SEEDS = range(400)


def test_a_seed_decides_everything() -> None:
    assert all(schedule(seed, 5) == schedule(seed, 5) for seed in SEEDS)
    assert len({str(schedule(seed, 5)) for seed in SEEDS}) == len(SEEDS)
    assert {kind_of(seed) for seed in range(len(RUNS))} == {ONE_HOST, PARALLEL, THREE_HOSTS}


def test_every_moment_and_everybody_is_drawn_with_each_signal() -> None:
    plans = {seed: schedule(seed, 5) for seed in SEEDS}
    firsts = [plan[0].moment for plan in plans.values()]
    assert all(firsts.count(moment) >= 40 for moment in (START, PROBE, GAP, STEPS))
    for seed, plan in plans.items():
        assert len(plan) == 5 and all(one.moment == STEPS for one in plan[1:])
        assert all(0.0 <= one.after_s <= LATEST_S[one.moment] for one in plan)
        assert all(sorted(one.order) == sorted(shots(kind_of(seed))) for one in plan)
    drawn = {one.order[0] for plan in plans.values() for one in plan}
    assert drawn == {shot for kind in RUNS for shot in shots(kind)}


def test_who_can_be_hit() -> None:
    """Each with both signals, but for the driver, whom nobody sees stop."""
    alone, parallel, hosts = ({name for name, _ in shots(kind)} for kind in (ONE_HOST, PARALLEL, THREE_HOSTS))
    engines = {"student engine 1", "student engine 1 process", "student engine 1 core", "teacher engine 0 core"}
    assert engines | {"learner", "rollout"} < alone
    assert parallel - alone == {"student engine 0 worker", "student engine 1 worker"} and hosts - alone == {"raylet"}
    assert [number for name, number in shots(ONE_HOST) if name == "driver"] == [signal.SIGKILL]


RECORD = {
    "step": 3, "time": 110.0, "weights_digest": "ab", "canary": 0.01, "canary_bound": 0.02, "policy_version_min": 2,
    "policy_version_max": 3,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, True),
        ({"canary": 0.03}, False),
        ({"canary": float("nan")}, False),
        ({"canary": None}, False),
        ({"canary_bound": None}, False),
        ({"policy_version_min": 1}, False),
        ({"policy_version_max": 4}, False),
        ({"weights_digest": None}, None),
        ({"time": 99.0}, None),
    ],
)
def test_weights_are_proven_by_each_push_after_the_fault(changes: dict[str, Any], found: bool | None) -> None:
    assert proven([RECORD | changes], 100.0, lag=1) is found
    before, after = RECORD | {"time": 50.0, "canary": None}, RECORD | {"step": 2, "policy_version_max": 2}
    assert proven([before, after, RECORD | changes], 100.0, lag=1) is (found is not False)
    assert proven([], 100.0, lag=1) is None


HIT = Hit("student engine 0 core", signal.SIGKILL, STEPS, at=20.0, clock=100.0, began=5.0)
LOST, BACK = "student engine 0 died: SIGKILL; it is replaced", "student engine 0 serves again, 9.0 s after it was lost"


@pytest.mark.parametrize(
    ("target", "said", "noticed", "back"),
    [
        ("student engine 0 core", [(15.0, LOST), (21.5, LOST), (30.0, BACK)], 1.5, 10.0),
        ("student engine 0 process", [(15.0, LOST), (21.5, LOST), (30.0, BACK)], 1.5, 10.0),
        ("student engine 0 worker", [(21.5, LOST), (30.0, BACK)], 1.5, 10.0),
        ("student engine 1", [(21.5, LOST), (30.0, BACK)], None, None),
        ("learner", [(22.0, "learner rank 0 died; the services start again"), (60.0, "resumed at step 3")], 2.0, 40.0),
        ("driver", [(60.0, "resumed at step 3")], None, 40.0),
    ],
)
def test_a_fault_is_timed_by_the_lines_after_it(
    target: str, said: list[tuple[float, str]], noticed: float | None, back: float | None
) -> None:
    found = fault_of(replace(HIT, target=target), said, [RECORD], 0, lag=1)
    assert (found.noticed_s, found.back_s, found.after_s) == (noticed, back, 15.0)


@pytest.mark.parametrize(("status", "time", "survived"), [(0, 90.0, True), (1, 110.0, True), (1, 90.0, False)])
def test_what_was_learned_or_ended_well_after_a_fault_survived_it(status: int, time: float, survived: bool) -> None:
    assert fault_of(HIT, [], [RECORD | {"time": time}], status, lag=1).survived is survived


def whole(folder: RunDir) -> None:
    manifest = Manifest(folder.manifest)
    for step in range(3):
        info = ShardInfo(f"{step}", step, 4, 9, "", (f"{step:06d}-000", f"{step:06d}-001"))
        manifest.append_written(info)
        manifest.append_trained(info.uri, step)
    folder.metrics.write_text("".join(json.dumps(RECORD | {"step": step}) + "\n" for step in range(3)))


def untrained(folder: RunDir) -> None:
    Manifest(folder.manifest).append_written(ShardInfo("3", 3, 4, 9, "", ("000003-000",)))


def twice(folder: RunDir) -> None:
    Manifest(folder.manifest).append_written(ShardInfo("3", 3, 4, 9, "", ("000002-000",)))
    Manifest(folder.manifest).append_trained("3", 3)


def lost(folder: RunDir) -> None:
    Manifest(folder.manifest).append_superseded("2")


def recorded_twice(folder: RunDir) -> None:
    folder.metrics.write_text(folder.metrics.read_text() + json.dumps(RECORD | {"step": 2}) + "\n")


@pytest.mark.parametrize(
    ("harm", "once", "written"),
    [
        (lambda _: None, True, True),
        (untrained, False, False),
        (twice, False, True),
        (lost, False, True),
        (recorded_twice, True, False),
    ],
)
def test_a_folder_says_what_was_learned(
    tmp_path: Path, harm: Callable[[RunDir], None], once: bool, written: bool
) -> None:
    folder = RunDir(tmp_path)
    assert not learned_once(tmp_path, 3, 2) and not trained_is_written(tmp_path, 3)
    whole(folder)
    harm(folder)
    assert (learned_once(tmp_path, 3, 2), trained_is_written(tmp_path, 3)) == (once, written)


FAULT = Fault("learner", "SIGKILL", STEPS, 9.0, 1.0, None, survived=True, proven=None)
WELL = Outcome(3, THREE_HOSTS, 0, 1, True, True, [], 99.0, [FAULT, replace(FAULT, proven=True)], "c0ffee")


@pytest.mark.parametrize(
    "changes",
    [
        {"status": 1},
        {"groups_once": False},
        {"trained_is_written": False},
        {"left_behind": ["a process"]},
        {"faults": [replace(FAULT, proven=False)]},
        {"faults": [replace(FAULT, survived=False)]},
    ],
)
def test_a_run_is_well_that_lacks_nothing(changes: dict[str, Any], tmp_path: Path) -> None:
    poor = replace(WELL, **changes)
    assert WELL.is_well and not poor.is_well
    report([WELL, poor], tmp_path / "chaos.json")
    assert read(tmp_path / "chaos.json") == [WELL, poor]


def test_the_tables_of_a_report_count_each_fault() -> None:
    core = replace(FAULT, target="teacher engine 0 core", signal="SIGSTOP", noticed_s=5.0, back_s=20.0, survived=False)
    other = replace(core, target="student engine 1 core", noticed_s=7.0, back_s=None, survived=True)
    said = tables([WELL, replace(WELL, seed=4, status=1, faults=[core, other])])
    assert "4 faults, 3 survived, in 2 runs, 1 of them well.\n" in said
    assert "\n| engine: core | SIGSTOP | 2 | 1 | 6.0 s (7.0) | 20.0 s (20.0) |\n" in said
    assert "\n| learner | SIGKILL | 2 | 2 | 1.0 s (1.0) | - |\n" in said
    runs = (f"| {seed} | three hosts | 2 | 1 | 1.6 | c0ffee | {well} |\n" for seed, well in ((3, "yes"), (4, "no")))
    assert said.endswith("\n" + "".join(runs))
