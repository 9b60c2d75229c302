"""`ray job submit` against a running cluster, with Ray's token authentication on, and `--resume`: the same tokens as
in a local run that nothing cut."""

import os
import shutil
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
from tests.runs import FINISHED, ROOT, free_port, lines, small_arguments

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


def test_a_submitted_job_resumes_a_cut_run_and_gives_what_the_whole_run_gave(
    cluster: dict[str, str], finished: tuple[Path, Any], tmp_path: Path
) -> None:
    """A copy of a local run, cut after its first checkpoint: the job goes on from there, on two ranks under ZeRO-3."""
    whole, run_dir = finished[0], tmp_path / "submitted"
    shutil.copytree(whole, run_dir)
    shutil.rmtree(run_dir / "checkpoints" / "step-000002")
    shutil.rmtree(run_dir / "export")
    (run_dir / "checkpoints" / "latest").write_text("step-000001")
    submit = [str(BIN / "ray"), "job", "submit", "--address", cluster["DASHBOARD"], "--working-dir", str(ROOT), "--"]
    run = ["edge-opd", *small_arguments(run_dir, *FINISHED, recipe="cluster/recipes/identity.toml"), "--resume"]
    done = subprocess.run([*submit, *run], env=cluster, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "succeeded" in done.stdout.lower() and "step   2/2" in done.stdout

    metrics, probes = lines(run_dir / "metrics.jsonl"), lines(run_dir / "probes.jsonl")
    assert [record["step"] for record in metrics] == [0, 1, 1] and [probe["step"] for probe in probes] == [0, 2, 2]
    # The checkpoint holds the weights that step 0 pushed, so the repeated step samples from exactly those.
    ours, theirs = (read_shard(str(folder / "shards" / "step-000001.arrow")) for folder in (run_dir, whole))
    assert ours.schema.metadata[b"weights_digest"].decode() == metrics[0]["weights_digest"]
    same = ("rollout_id", "prompt_id", "guided", "prompt_ids", "context_prompt_ids", "response_ids")
    assert all(ours.column(name).to_pylist() == theirs.column(name).to_pylist() for name in same)
    manifest = Manifest(run_dir / "manifest.jsonl")
    assert len(manifest.written()) == 2 and manifest.trained() == set(manifest.written())
    assert (run_dir / "export" / "model.safetensors").is_file()
