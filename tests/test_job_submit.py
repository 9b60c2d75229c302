"""`ray job submit` against a running cluster, with Ray's token authentication on, gives what a local run gives."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from evidence.manifest import Manifest
from evidence.shards import read_shard
from tests.runs import FINISHED, ROOT, SMALL, free_port, lines

pytestmark = pytest.mark.engine

BIN = Path(sys.executable).parent


def end_session(folder: str) -> None:
    """Ends the processes of this Ray session only: `ray stop` would end every Ray on the machine."""
    mine = [process for process in psutil.process_iter() if folder in " ".join(_command(process))]
    for process in mine:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(mine, timeout=30)


def _command(process: psutil.Process) -> list[str]:
    with suppress(psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
        return list(process.cmdline())
    return []


@pytest.fixture
def cluster() -> Iterator[dict[str, str]]:
    """A Ray head on loopback with its own token and session folder; yields the environment that reaches it."""
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:  # Ray's socket paths must be short
        port, dashboard = free_port(), free_port()
        env = {
            **{key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"},
            "PATH": os.pathsep.join([str(BIN), os.environ.get("PATH", "")]),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": "0123456789abcdef0123456789abcdef",
        }
        started = subprocess.run(
            [
                str(BIN / "ray"), "start", "--head", "--node-ip-address=127.0.0.1", f"--port={port}",
                f"--dashboard-port={dashboard}", "--num-cpus=2", f"--temp-dir={folder}", "--disable-usage-stats",
                "--dashboard-agent-listen-port=0",  # any: without its agent a head takes no jobs
            ],
            env=env, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert started.returncode == 0, started.stdout + started.stderr
        try:
            yield env | {"DASHBOARD": f"http://127.0.0.1:{dashboard}"}
        finally:
            end_session(folder)


def test_a_submitted_job_gives_the_same_result(
    cluster: dict[str, str], finished: tuple[Path, Any], tmp_path: Path
) -> None:
    run_dir = tmp_path / "submitted"
    settings = [part for item in (*SMALL, *FINISHED, "run.steps=1") for part in ("--set", item)]
    command = [
        str(BIN / "ray"), "job", "submit", "--address", cluster["DASHBOARD"], "--working-dir", str(ROOT), "--",
        "edge-opd", "run", "cluster/recipes/identity.toml", "--run-dir", str(run_dir), *settings,
    ]  # fmt: skip
    done = subprocess.run(command, env=cluster, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "succeeded" in done.stdout.lower() and "step   1/1" in done.stdout

    local = finished[0]
    ours, theirs = (read_shard(min(Manifest(d / "manifest.jsonl").written())).to_pylist() for d in (run_dir, local))
    same = ("rollout_id", "prompt_id", "guided", "prompt_ids", "context_prompt_ids", "response_ids")
    assert [[row[key] for key in same] for row in ours] == [[row[key] for key in same] for row in theirs]
    (step,), (before, after) = lines(run_dir / "metrics.jsonl"), lines(run_dir / "probes.jsonl")
    assert before == lines(local / "probes.jsonl")[0] and after["step"] == 1
    assert step["step"] == 0 and step["rows"] == 8
    assert (run_dir / "export" / "model.safetensors").is_file()
