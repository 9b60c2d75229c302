"""A short run of `make chaos`, whose seed decides which processes are lost, how and when."""

import signal
from pathlib import Path

from cluster.fleet import scratch
from tests.chaos.__main__ import one
from tests.chaos.schedule import GAP, ONE_HOST, STEPS, kind_of

SEED = 112  # an engine's process is stopped before step 1, and the core of another killed amid the steps


def kept_on_this_host() -> set[Path]:
    """Shared memory and folders of runs."""
    return {*Path("/dev/shm").iterdir(), *scratch.place().glob(f"{scratch.PREFIX}*")}


def test_a_seeded_run_of_chaos_is_well(tmp_path: Path, small_model: Path) -> None:
    assert kind_of(SEED) == ONE_HOST
    before = kept_on_this_host()
    found = one(SEED, small_model, tmp_path / "run", 2)
    assert found.is_well, found
    assert kept_on_this_host() <= before
    faults = [(fault.target, fault.signal, fault.moment) for fault in found.faults]
    assert faults == [
        ("student engine 1 process", signal.SIGSTOP.name, GAP),
        ("student engine 0 core", signal.SIGKILL.name, STEPS),
    ]
