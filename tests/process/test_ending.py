"""How processes end."""

import subprocess
import sys
import time

import psutil
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


FORKS = """
import os, time
os.register_at_fork(after_in_child=lambda: time.sleep(1.0))  # until who forked it is gone
{}
number = os.fork()
if number == 0:
    time.sleep(600)
elif {}:
    print(number, flush=True)
else:
    print(number, os.waitpid(number, os.WNOHANG) == (0, 0), time.sleep(3.0), os.waitpid(number, os.WNOHANG) == (0, 0))
    os.kill(number, 9)
os._exit(0)
"""
BOUND = "from rollout.ending import end_forks_with_their_parents; end_forks_with_their_parents()"


def said_by(told: str, ends: bool) -> str:
    command = [sys.executable, "-c", FORKS.format(told, ends)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as forking:
        assert forking.stdout is not None
        return forking.stdout.readline().strip()


def test_a_fork_of_a_process_that_ends_at_once_ends_too() -> None:
    """Before the fork has said to the kernel whose end is to be its own."""
    number = int(said_by(BOUND, ends=True))
    end = time.monotonic() + 60
    while psutil.pid_exists(number) and time.monotonic() < end:
        time.sleep(0.1)
    assert not psutil.pid_exists(number)


def test_a_fork_of_a_process_that_goes_on_goes_on() -> None:
    assert said_by(BOUND, ends=False).split()[1:] == ["True", "None", "True"]
