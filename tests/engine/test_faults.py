"""What a real run survives: its own processes are killed and stopped while it works."""

import re
import signal
from pathlib import Path

import psutil

from cluster.errors import PREEMPTED
from cluster.fleet import scratch
from cluster.run.replay import learned_groups
from cluster.run.rundir import RunDir
from tests.faults import UnderWay, under_way
from tests.runs import lines, small_arguments

STEPS = 24
MANY = (
    f"run.steps={STEPS}", "run.max_policy_lag=1", "run.checkpoint_every=10", "faults.silent_s=4.0",
    "weights.deadline_s=60.0",
)  # fmt: skip
ONE_ENGINE = ("learner.lora_rank=8", "student.dtype=float32")


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


def test_a_run_outlives_a_rank_and_ends_well_when_it_is_asked_to(tmp_path: Path, small_model: Path) -> None:
    run_dir = tmp_path / "run"
    with under_way(small_arguments(run_dir, f"model.path={small_model}", *ONE_ENGINE, *MANY)) as run:
        after_steps(run_dir, run, 2)
        run.send("learner", signal.SIGKILL)
        after_steps(run_dir, run, 2)
        run.process.terminate()
        status, said, errors = run.end()
    assert status == PREEMPTED, said[-3000:] + errors[-3000:]
    stopped = re.fullmatch(r"edge-opd: stopped by SIGTERM after step (\d+): --resume .*", errors.strip())
    assert stopped, errors
    assert re.search(r"learner rank 0 died: .*; the services start again", said) and "resumed at step" in said, said
    assert [record["step"] for record in lines(run_dir / "metrics.jsonl")] == list(range(int(stopped[1])))
    assert (run_dir / "checkpoints" / "latest").read_text() == f"step-{int(stopped[1]):06d}"
    assert not run.left_behind()


def test_nothing_outlives_a_run_whose_ray_is_killed(tmp_path: Path, small_model: Path) -> None:
    """Ray's own processes end then, and the driver by Ray's hand: nobody is left to end the engines' cores."""
    run_dir, before = tmp_path / "run", set(scratch.place().glob(f"{scratch.PREFIX}*"))
    with under_way(small_arguments(run_dir, f"model.path={small_model}", "run.steps=10000", *MANY[1:])) as run:
        after_steps(run_dir, run, 1)
        cores = [process for name, process in run.processes().items() if name.endswith("engine 0 core")]
        (folder,) = set(scratch.place().glob(f"{scratch.PREFIX}*")) - before
        assert any((folder / scratch.RAY).glob("session_*")) and folder.stat().st_mode & 0o777 == 0o700
        assert len(cores) == 2
        (head,) = [one for one in run.seen if "gcs_server" in one.name()]
        head.kill()
        status, said, errors = run.end()
        assert status != 0, said[-3000:] + errors[-3000:]
        assert not psutil.wait_procs(cores, timeout=60)[1] and not run.left_behind()
    scratch.remove_left()
    assert not folder.exists()
