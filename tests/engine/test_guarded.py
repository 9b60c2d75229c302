"""What a real run of one host opens to others: sockets, files, words."""

import os
import stat

from tests.listeners import WORKER, Listener
from tests.runs import PLANTED, WatchedRun

# Every process of a local run that listens, and what it asks of who connects. Nobody on another host can connect.
LOCAL = {
    "edge-opd": "Ray's token",
    "dashboard": "nothing for its metrics",  # without a page: only its modules that others need
    "monitor": "nothing for its metrics",
    "gcs_server": "Ray's token",
    "raylet": "Ray's token",
    "ray::DashboardAgent": "Ray's token; nothing for the metrics",
    "ray::RuntimeEnvAgent": "Ray's token",
    WORKER: "Ray's token",
    "ray::RolloutActor": "Ray's token",
    "ray::EngineActor": "Ray's token",
    "VLLM::EngineCore": "Ray's token; nothing for gloo, whose groups are of one process",  # the same, with its engine
    "ray::LearnerActor": "Ray's token; the secret of the ranks' group for gloo",
}


def test_a_local_run_listens_where_no_other_host_reaches_it(watched_run: WatchedRun) -> None:
    found = watched_run.listeners
    assert {"edge-opd", "gcs_server", "raylet", "ray::LearnerActor", "VLLM::EngineCore"} <= {
        one.process for one in found
    }
    assert found <= {Listener(process, "loopback") for process in LOCAL}


def test_nothing_that_a_run_writes_or_prints_has_a_credential(watched_run: WatchedRun) -> None:
    """Its folder, the logs of its actors and Ray's, and its output."""
    folders = watched_run.run_dir, watched_run.temporary
    written = [path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    names = {path.name for path in written}
    assert {"config.toml", "manifest.jsonl", "README.md", "dashboard.html", "gcs_server.out"} <= names
    assert any(name.startswith("learner-") for name in names)
    output = watched_run.done.stdout + watched_run.done.stderr
    said = {str(path): path.read_bytes() for path in written} | {"output": output.encode()}
    assert not [(name, key) for name, text in said.items() for key, value in PLANTED.items() if value.encode() in text]


def test_the_logs_of_actors_are_their_users_own(watched_run: WatchedRun) -> None:
    (folder,) = watched_run.temporary.glob("edge-opd-logs-*")
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == {0o600} and stat.S_IMODE(folder.stat().st_mode) == 0o700 and folder.stat().st_uid == os.getuid()
