"""Small real runs that fail: what each says, and what it leaves."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.runs import ONE_ENGINE, small_runs

Failed = dict[str, "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def failed(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Failed]]:
    """Three runs that fail, side by side: the folder that has theirs, and what each printed. The disk of "full", which
    holds 4 kB, is there where root may mount one."""
    folder = tmp_path_factory.mktemp("failed")
    disk = folder / "disk"
    disk.mkdir()
    settings = {
        "dead": (*ONE_ENGINE, "student.kv_cache_gib=100000.0"),
        # No engine agrees with a bfloat16 learner to 1e-6.
        "canary": ("learner.lora_rank=8", "weights.canary_tolerance=1e-6"),
    }
    with ExitStack() as undo:
        mount = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(disk)]
        if os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0:
            undo.callback(subprocess.run, ["umount", str(disk)], check=True)
            settings["full"] = (*ONE_ENGINE, f"run.storage={disk}", "faults.store_s=2")
        common = (f"model.path={small_model}", "probe.gap=false")
        yield folder, small_runs(folder, {name: (*common, *own) for name, own in settings.items()})


def test_an_engine_that_dies_at_start_shows_its_last_lines(failed: tuple[Path, Failed]) -> None:
    done = failed[1]["dead"]
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr[-2000:]
    assert "student engine 0 did not start" in done.stderr and "last lines of" in done.stderr
    assert "100000" in done.stderr  # vLLM's own words


def test_an_engine_that_disagrees_stops_the_run_and_is_named(failed: tuple[Path, Failed]) -> None:
    """The canary before the first step must say so."""
    folder, done = failed[0], failed[1]["canary"]
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr[-2000:]
    assert "canary at version 0: student engine 0 differs from the learner" in done.stderr
    assert (folder / "canary" / "config.toml").exists() and not (folder / "canary" / "manifest.jsonl").exists()


def test_a_full_disk_ends_the_run_and_leaves_no_half_shard(failed: tuple[Path, Failed]) -> None:
    folder, runs = failed
    if "full" not in runs:
        pytest.skip("mounting a small disk needs root, and a machine that lets it")
    done, disk = runs["full"], folder / "disk"
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr[-2000:]
    assert str(disk / "step-000000.arrow") in done.stderr and "No space left" in done.stderr
    assert list(disk.iterdir()) == []
