"""A sweep of a real run through the command line, and again once it is finished."""

import pytest

from tests.runs import SweptRun, edge_opd

pytestmark = pytest.mark.engine


def test_a_sweep_runs_what_is_missing_and_makes_a_table(swept: SweptRun) -> None:
    assert swept.done.stdout.splitlines()[0].startswith("user-seed3: probe at step 2: selfname 0.")
    assert "| user | 3 | 0." in swept.done.stdout and "probe at step 2" in swept.log.read_text()
    begun = swept.log.stat().st_mtime
    again = edge_opd(*swept.command)
    assert again.returncode == 0 and "user-seed3: " not in again.stdout and "| user | 3 | 0." in again.stdout
    assert swept.log.stat().st_mtime == begun
