"""What whole runs leave whose Ray, or a service, is killed; minutes, and so not in `make test`: pytest tests/chaos."""

import signal
from pathlib import Path

import psutil
import pytest

from cluster.errors import PREEMPTED
from cluster.fleet import scratch
from tests.chaos.places import can_be, place_of
from tests.chaos.schedule import THREE_HOSTS
from tests.engine.test_faults import MANY, after_steps
from tests.faults import title_of, under_way
from tests.runs import small_arguments


def test_nothing_outlives_a_run_whose_ray_is_killed(tmp_path: Path, small_model: Path) -> None:
    """By its head, without which nothing of Ray's returns: the run ends by itself with a line, before Ray ends it."""
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
        assert status == 1 and "Ray's head (gcs_server) at " in errors.splitlines()[-1], said[-3000:] + errors[-3000:]
        assert not psutil.wait_procs(cores, timeout=60)[1] and not run.left_behind()
    scratch.remove_left()
    assert not folder.exists()


@pytest.mark.skipif(not can_be(THREE_HOSTS), reason="hosts need root and iproute2")
def test_an_engine_that_hangs_does_not_outlive_a_rollout_service_that_is_lost(
    tmp_path: Path, small_model: Path
) -> None:
    """On a cluster, whose Ray goes on: it kills an actor soon after its owner's end, also one that is stopped."""
    run_dir = tmp_path / "run"
    arguments = small_arguments(run_dir, f"model.path={small_model}", "run.steps=10000", *MANY[1:])
    with place_of(THREE_HOSTS) as place, under_way(arguments, place.through) as run:
        after_steps(run_dir, run, 1)
        run.send("student engine 0", signal.SIGSTOP)
        run.send("rollout", signal.SIGKILL)
        after_steps(run_dir, run, 2)
        run.process.terminate()
        status, said, errors = run.end()
        assert status == PREEMPTED, said[-3000:] + errors[-3000:]
        assert not list(map(title_of, run.left_behind()))
