"""A sweep of a real run through the command line, and again once it is finished."""

import pytest

from cluster.__main__ import main
from tests.runs import SweptRun

pytestmark = pytest.mark.engine


def test_a_sweep_runs_what_is_missing_and_makes_a_table(swept: SweptRun, capsys: pytest.CaptureFixture[str]) -> None:
    assert swept.done.stdout.splitlines()[0].startswith("user-seed3: probe at step 2: selfname 0.")
    assert "| user | 3 | 0." in swept.done.stdout and "probe at step 2" in swept.log.read_text()
    begun = swept.log.stat().st_mtime
    assert main(swept.command) == 0
    again = capsys.readouterr().out
    assert "user-seed3: " not in again and "| user | 3 | 0." in again
    assert swept.log.stat().st_mtime == begun
