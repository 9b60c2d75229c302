"""How processes end."""

import subprocess
import sys

import pytest

GARBAGE = """
class Ring:
    def __init__(self):
        self.itself = self
    def __del__(self):
        print("found")
import gc
gc.disable()
{}
Ring()
"""


TOLD = "from rollout.ending import end_uncollected; end_uncollected()"


@pytest.mark.parametrize(("told", "said"), [("", "found"), (TOLD, "")])
def test_a_process_that_ends_uncollected_does_not_look_for_garbage(told: str, said: str) -> None:
    """Which costs seconds beside a million objects; how long it takes would depend on the machine."""
    done = subprocess.run([sys.executable, "-c", GARBAGE.format(told)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == said
