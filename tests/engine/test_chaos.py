"""A short run of `make chaos`, whose seed decides which processes are lost, how and when."""

import signal
from pathlib import Path

from tests.chaos.__main__ import one
from tests.chaos.schedule import GAP, ONE_HOST, STEPS, kind_of

SEED = 112  # an engine's process is stopped before step 1, and the core of another killed amid the steps


def test_a_seeded_run_of_chaos_is_well(tmp_path: Path, small_model: Path) -> None:
    assert kind_of(SEED) == ONE_HOST
    found = one(SEED, small_model, tmp_path / "run", 2)
    assert found.is_well, found
    faults = [(fault.target, fault.signal, fault.moment) for fault in found.faults]
    assert faults == [
        ("student engine 1 process", signal.SIGSTOP.name, GAP),
        ("student engine 0 core", signal.SIGKILL.name, STEPS),
    ]
