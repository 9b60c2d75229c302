"""A sweep of a real run through the command line, and again once it is finished."""

from pathlib import Path

import pytest

from tests.runs import RECIPE, SMALL, edge_opd

pytestmark = pytest.mark.engine


def test_a_sweep_runs_what_is_missing_and_makes_a_table(tmp_path: Path, small_model: Path) -> None:
    settings = (*SMALL, f"model.path={small_model}", "run.steps=1", "probe.gap=false", "learner.lora_rank=4")
    listed = ", ".join(f'"{setting}"' for setting in settings)
    vary = '[vary.position]\nuser = ["rollout.context_position=user"]\n'
    (tmp_path / "one.toml").write_text(f'recipe = "{RECIPE}"\nset = [{listed}]\nseeds = [3]\n\n{vary}')
    command = ("sweep", str(tmp_path / "one.toml"), "--dir", str(tmp_path / "runs"))
    done = edge_opd(*command)
    log = tmp_path / "runs" / "user-seed3.log"
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:] + log.read_text()[-3000:]
    assert done.stdout.splitlines()[0].startswith("user-seed3: probe at step 1: selfname 0.")
    assert "| user | 3 | 0." in done.stdout and "probe at step 1" in log.read_text()
    begun = log.stat().st_mtime
    again = edge_opd(*command)
    assert again.returncode == 0 and "user-seed3: " not in again.stdout and "| user | 3 | 0." in again.stdout
    assert log.stat().st_mtime == begun
