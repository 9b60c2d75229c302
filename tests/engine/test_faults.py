"""What a real run survives: its own processes are killed and stopped while it works."""

import os
import re
import signal
from pathlib import Path

import psutil
import pytest

from cluster.errors import PREEMPTED
from cluster.run.replay import learned_groups
from cluster.run.rundir import RunDir
from tests.faults import UnderWay, under_way
from tests.runs import ONE_ENGINE, lines, small_arguments

STEPS = 24
MANY = (
    f"run.steps={STEPS}", "run.max_policy_lag=1", "run.checkpoint_every=10", "faults.silent_s=12.0",
    "faults.grace_s=120.0", "weights.deadline_s=30.0",
)  # fmt: skip


def after_steps(run_dir: Path, run: UnderWay, more: int) -> None:
    """Waits for this many more steps."""
    metrics = run_dir / "metrics.jsonl"
    before = len(lines(metrics)) if metrics.exists() else 0
    run.wait_until(f"step {before + more}", lambda: metrics.exists() and len(lines(metrics)) >= before + more)


def test_a_run_outlives_its_engines(tmp_path: Path, small_model: Path) -> None:
    """One engine of two is killed and the core of the other stopped; then the core of the only teacher is killed."""
    run_dir = tmp_path / "run"
    with under_way(small_arguments(run_dir, f"model.path={small_model}", "student.num_engines=2", *MANY)) as run:
        after_steps(run_dir, run, 2)
        run.send("student engine 0", signal.SIGKILL)
        run.send("student engine 1 core", signal.SIGSTOP)
        after_steps(run_dir, run, 3)
        run.send("teacher engine 0 core", signal.SIGKILL)
        status, said, errors = run.end()
    assert status == 0, said[-3000:] + errors[-3000:]
    hung = r"(?:student engine 1: no answer|no answer from student engine 1 )"  # to a ping, or amid a push
    for lost in (r"student engine 0 died: ", hung, r"teacher engine 0 died: "):
        assert re.search(f"{lost}.*; it is replaced", said), said
    groups = [f"{step:06d}-{slot:03d}" for step in range(STEPS) for slot in range(2)]
    assert sorted(learned_groups(RunDir(run_dir))) == groups
    assert not run.left_behind()


def interrupt(run: UnderWay) -> None:
    """As Ctrl-C in a terminal: whatever is in the driver's group of processes."""
    driver = psutil.Process(run.process.pid)
    for one in (driver, *driver.children(recursive=True)):
        if os.getpgid(one.pid) == os.getpgid(driver.pid):
            one.send_signal(signal.SIGINT)


@pytest.mark.parametrize(("ranks", "killed", "asked"), [(1, "0", "SIGINT"), (2, "[01]", "SIGTERM")])
def test_a_run_with_an_adapter_outlives_a_rank_and_its_engine_and_ends_well_when_it_is_asked_to(
    tmp_path: Path, small_model: Path, ranks: int, killed: str, asked: str
) -> None:
    """Of two ranks, whose logs have one name, either is killed; the other's collectives fail beside its death."""
    run_dir = tmp_path / "run"
    settings = (f"model.path={small_model}", f"learner.num_ranks={ranks}", *ONE_ENGINE, *MANY)
    with under_way(small_arguments(run_dir, *settings)) as run:
        after_steps(run_dir, run, 2)
        run.send("learner", signal.SIGKILL)
        after_steps(run_dir, run, 2)
        if asked == "SIGINT":
            run.send("student engine 0 core", signal.SIGKILL)
            run.wait_until("its successor", lambda: "student engine 0 serves again" in run.said())
            interrupt(run)
        else:
            run.process.terminate()
        status, said, errors = run.end()
    assert status == PREEMPTED, said[-3000:] + errors[-3000:]
    stopped = re.fullmatch(rf"edge-opd: stopped by {asked} after step (\d+): --resume .*", errors.strip())
    assert stopped, errors
    assert (
        re.search(rf"learner rank {killed} died: .*; the services start again", said) and "resumed at step" in said
    ), said
    assert [record["step"] for record in lines(run_dir / "metrics.jsonl")] == list(range(int(stopped[1])))
    assert (run_dir / "checkpoints" / "latest").read_text() == f"step-{int(stopped[1]):06d}"
    assert not run.left_behind()
