"""A whole run whose Ray is killed; minutes, and so not in `make test`: pytest tests/chaos."""

from pathlib import Path

import psutil

from cluster.fleet import scratch
from tests.engine.test_faults import MANY, after_steps
from tests.faults import under_way
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
