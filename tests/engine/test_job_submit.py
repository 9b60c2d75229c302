"""`ray job submit` to a cluster of three hosts from a fourth, over HTTP and with Ray's token authentication on. They
share no folder: what changed of the weights goes over gloo, shards through an S3 server, the model back to the driver's
host."""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import fs as pafs
from safetensors.torch import load_file

from evidence.manifest import Manifest
from evidence.shards import read_shard
from tests.hosts import BIN, Host, end_session, hosts, processes_of, start_ray
from tests.listeners import OF_A_WORKER, WORKER, Kinds, unexpected, watched
from tests.runs import FINISHED, ROOT, lines, small_arguments
from tests.s3 import CREDENTIALS
from tests.strangers import METRICS, SILENCE, TOKEN, UNREACHED, asks_for

DASHBOARD, STORE = 8265, 5000
OWN = "its host's address"
ONE = (1, 1)
# Of each process of the cluster that listens: from where it can be reached, what it asks of a stranger on another host,
# and the least and the most such sockets. What says nothing is gloo and the store, of ranks and of weights, which ask
# for the secret of the group: test_weights_flow_only_to_who_has_the_groups_secret. Ray's server for clients is no
# process of the session, and not looked at.
LISTENERS: dict[str, Kinds] = {
    "gcs_server": {("everyone", TOKEN): ONE},
    "raylet": {("everyone", TOKEN): (2, 2)},
    "dashboard": {("everyone", TOKEN): ONE, ("everyone", METRICS): ONE},
    "monitor": {("everyone", METRICS): ONE},
    "ray::DashboardAgent": {
        ("everyone", TOKEN): (1, 2),  # two where a job is submitted
        ("everyone", METRICS): ONE,
        (OWN, TOKEN): ONE,
        ("loopback", UNREACHED): ONE,
    },
    "ray::RuntimeEnvAgent": {(OWN, TOKEN): ONE},
    "ray::JobSupervisor": {("everyone", TOKEN): ONE},
    WORKER: {("everyone", asks): number for asks, number in OF_A_WORKER.items()},
    "edge-opd": {("everyone", TOKEN): ONE},
    "ray::RolloutActor": {("everyone", TOKEN): ONE},
    "ray::EngineActor": {("everyone", TOKEN): ONE},
    "VLLM::EngineCore": {("loopback", UNREACHED): (13, 13), (OWN, SILENCE): (0, 1)},  # one that takes weights
    "ray::LearnerActor": {("everyone", TOKEN): ONE, (OWN, SILENCE): (3, 5)},  # the most of rank 0
}


@dataclass(frozen=True)
class Cluster:
    """Three hosts of Ray, of which the first has `runs`, and a fourth with the S3 server."""

    outside: Host
    dashboard: str
    store: str
    runs: Path
    session: str  # the folder of Ray's
    env: dict[str, str]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("hosts of their own need root and iproute2")
    runs = tmp_path / "runs"
    runs.mkdir()
    env = {
        **{key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"},
        **CREDENTIALS,
        "PATH": os.pathsep.join([str(BIN), os.environ.get("PATH", "")]),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0123456789abcdef0123456789abcdef",
    }
    session = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # Ray's socket paths must be short
    with hosts(4) as (head, *others, outside):
        workers = [replace(host, hidden=(runs, session)) for host in others]
        store = outside.popen([sys.executable, "-m", "moto.server", "-H", outside.address, "-p", str(STORE)], env)
        try:
            common = [
                "--num-cpus=1",
                f"--temp-dir={session}",
                "--disable-usage-stats",
                "--object-store-memory=200000000",
            ]
            start_ray(head, env, "--head", "--port=6379", "--dashboard-host=0.0.0.0", *common)
            for host in workers:
                start_ray(host, env, f"--address={head.address}:6379", *common)
            uri = f"s3://shards/run?scheme=http&endpoint_override={outside.address}:{STORE}"
            make_bucket(f"{uri}&allow_bucket_creation=true")
            yield Cluster(outside, f"http://{head.address}:{DASHBOARD}", uri, runs, str(session), env)
        finally:
            store.kill()
            store.wait(timeout=30)
            end_session(str(session))
            shutil.rmtree(session, ignore_errors=True)


def make_bucket(uri: str) -> None:
    """Waits for the server, which this machine reaches over the bridge."""
    for _ in range(120):
        with suppress(OSError):
            pafs.FileSystem.from_uri(uri)[0].create_dir("shards")
            return
        time.sleep(0.5)
    raise AssertionError(f"no S3 server behind {uri}")


def test_three_hosts_learn_what_one_host_learns(
    cluster: Cluster, finished: tuple[Path, Any], small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, run_dir = finished[0], cluster.runs / "hosts"
    submit = [str(BIN / "ray"), "job", "submit", "--address", cluster.dashboard, "--working-dir", str(ROOT), "--"]
    settings = (f"model.path={small_model}", *FINISHED, f"run.storage={cluster.store}", "weights.delta=true")
    run = ["edge-opd", *small_arguments(run_dir, *settings, recipe="cluster/recipes/identity.toml")]
    with watched(lambda: processes_of(cluster.session), asks_for) as watch:
        done = cluster.outside.run([*submit, *run], cluster.env, timeout=1200)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "succeeded" in done.stdout.lower() and "step   2/2" in done.stdout and "weights over gloo" in done.stdout

    # Dealt out in turn: both engines and the first rank have hosts of their own.
    places = next(line for line in done.stdout.splitlines() if line.startswith("student engine 0 on "))
    where = dict(part.split(" on ") for part in places.split("; "))
    assert set(where) == {"student engine 0", "teacher engine 0", "learner rank 0", "learner rank 1"}
    assert len({where[name] for name in ("student engine 0", "teacher engine 0", "learner rank 0")}) == 3
    assert where["learner rank 1"] == where["student engine 0"]

    found = [replace(one, reach=OWN) if one.reach.startswith("10.213.") else one for one in watch.found()]
    assert not unexpected(found, LISTENERS)
    assert LISTENERS.keys() - {WORKER} <= {one.process for one in found}

    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    manifest = Manifest(run_dir / "manifest.jsonl")
    assert len(manifest.written()) == 2
    assert manifest.trained() == set(manifest.written()) and all("s3://" in uri for uri in manifest.written())
    assert not list((run_dir / "shards").iterdir())
    ours = {info.step: read_shard(uri, info) for uri, info in manifest.written().items()}
    theirs = {step: read_shard(str(alone / "shards" / f"step-{step:06d}.arrow")) for step in ours}
    same = ("rollout_id", "prompt_id", "guided", "prompt_ids", "context_prompt_ids", "response_ids")
    assert all(ours[0].column(name).to_pylist() == theirs[0].column(name).to_pylist() for name in same)
    np.testing.assert_allclose(flat(ours[0], "evidence"), flat(theirs[0], "evidence"), atol=1e-3)
    records, expected = (lines(folder / "metrics.jsonl") for folder in (run_dir, alone))
    for key in ("loss", "grad_norm", "kept"):
        assert records[0][key] == pytest.approx(expected[0][key], rel=1e-2, abs=1e-4), key
    pushed = [(record["pushed_bytes"], whole["pushed_bytes"]) for record, whole in zip(records, expected, strict=True)]
    assert all(0 < some < whole for some, whole in pushed), pushed
    # Where it ends, against how far it went: sums over other threads or ranks round otherwise.
    base, one, three = (
        load_file(folder / "model.safetensors") for folder in (small_model, alone / "export", run_dir / "export")
    )
    moved = sum((one[name].float() - base[name].float()).abs().sum().item() for name in one)
    apart = sum((one[name].float() - three[name].float()).abs().sum().item() for name in one)
    seconds = [record["push_parts"] for record in records]
    print(f"{places}; weights apart / moved: {apart / moved:.3f}; bytes pushed {pushed}, {seconds}")
    assert moved > 0 and apart < 0.1 * moved
    assert (run_dir / "export" / "README.md").is_file()
    assert [probe["step"] for probe in lines(run_dir / "probes.jsonl")] == [0, 2]


def flat(shard: Any, column: str) -> Any:
    return np.concatenate(shard.column(column).to_numpy())
