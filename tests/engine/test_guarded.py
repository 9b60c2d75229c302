"""What a real run of one host opens to others: sockets, files, words."""

import os
import stat

from tests.listeners import OF_A_WORKER, WORKER, unexpected
from tests.runs import PLANTED, WatchedRun
from tests.strangers import METRICS, SILENCE, TOKEN

ONE = (1, 1)
# Of each process of a local run that listens: what it asks of a stranger, and the least and the most such sockets. What
# says nothing is gloo of vLLM's groups of one process, and the store and gloo of the learner's ranks, which ask for the
# secret of the group: test_weights_flow_only_to_who_has_the_groups_secret.
LOCAL: dict[str, dict[str, tuple[int, int]]] = {
    "edge-opd": {TOKEN: ONE},
    "gcs_server": {TOKEN: ONE},
    "raylet": {TOKEN: (2, 2)},
    "ray::DashboardAgent": {TOKEN: (2, 2), METRICS: ONE},
    "ray::RuntimeEnvAgent": {TOKEN: ONE},
    WORKER: OF_A_WORKER,
    "ray::RolloutActor": {TOKEN: ONE},
    "ray::EngineActor": {TOKEN: ONE},
    "VLLM::EngineCore": {SILENCE: (13, 13)},
    "ray::LearnerActor": {TOKEN: ONE, SILENCE: (2, 5)},  # the most of rank 0
}


def test_a_local_run_listens_where_no_other_host_reaches_it(watched_run: WatchedRun) -> None:
    """A new socket of any process, or one that no longer asks, is a line."""
    found = watched_run.listeners
    loopback = {name: {("loopback", asks): number for asks, number in kinds.items()} for name, kinds in LOCAL.items()}
    assert not unexpected(found, loopback)
    assert LOCAL.keys() - {WORKER} <= {one.process for one in found}


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
