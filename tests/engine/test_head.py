"""A Ray whose head is killed or stopped, under a driver that waits for it and an actor that has a process of its own,
as an engine's has its core."""

import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from cluster.run.rundir import RunDir
from tests.runs import ROOT

DRIVER = """
import multiprocessing, sys, time
from functools import partial
from pathlib import Path
import psutil, ray
from cluster.fleet.head import watched_head
from cluster.fleet.ray_cluster import connect
from cluster.observe.sinks import MetricsSink
from cluster.run.boundary import end_at_once
from cluster.run.rundir import RunDir

class Actor:
    def wait(self, seconds):
        time.sleep(seconds)

    def start_core(self):
        from tests.faults import core
        child = multiprocessing.get_context("spawn").Process(target=core)
        child.start()
        return child.pid

connect()
folder = RunDir(Path(sys.argv[1]))
folder.hold()
sink = MetricsSink(9)
sink.stage("step 3: sampling")
actor = ray.remote(Actor).options(num_cpus=0).remote()
with watched_head(partial(end_at_once, sink, folder)):
    core = ray.get(actor.start_core.remote())
    time.sleep(5)  # in which the head answers, and the core starts
    started = psutil.Process().children(recursive=True)
    assert core in {process.pid for process in started}
    print(*(process.pid for process in started), flush=True)
    (gcs,) = [process for process in started if "gcs_server" in process.name()]
    gcs.send_signal(int(sys.argv[2]))
    print(time.time(), flush=True)
    ray.get(actor.wait.remote(600))
"""


# How the head is lost: seconds until the run ends, and why it does.
LOST = {signal.SIGKILL: (10, "it died or was killed"), signal.SIGSTOP: (30, "it hangs or was stopped")}


@dataclass(frozen=True)
class Ended:
    """A run that has ended: its folder, the moment, and its processes that were left a minute later."""

    folder: Path
    done: "subprocess.CompletedProcess[str]"
    at: float
    left: list[int]


def ended(number: signal.Signals, folder: Path) -> Ended:
    env = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", DRIVER, str(folder), str(int(number))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, cwd=ROOT, env=env)
    at, end = time.time(), time.monotonic() + 60
    numbers = [int(number) for number in done.stdout.partition("\n")[0].split()]
    while (left := [number for number in numbers if psutil.pid_exists(number)]) and time.monotonic() < end:
        time.sleep(0.1)  # a process that is killed takes a moment to end
    return Ended(folder, done, at, left)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[signal.Signals, Ended]:
    """One for each of `LOST`, side by side: they wait for most of their time."""
    folders = [tmp_path_factory.mktemp("lost") for _ in LOST]
    with ThreadPoolExecutor() as pool:
        return dict(zip(LOST, pool.map(ended, LOST, folders), strict=True))


@pytest.mark.parametrize("number", LOST)
def test_a_run_whose_rays_head_is_lost_ends_with_a_line_before_ray_ends_it(
    runs: dict[signal.Signals, Ended], number: signal.Signals
) -> None:
    run, (seconds, why) = runs[number], LOST[number]
    said = re.escape("edge-opd: step 3: sampling: Ray's head (gcs_server) at 127.0.0.1:")
    line = rf"{said}\d+ does not answer for {seconds} s: {why}; --resume continues from what stands"
    stderr = run.done.stderr
    assert run.done.returncode == 1 and re.fullmatch(line, stderr.splitlines()[-1]), stderr[-3000:]
    numbers, killed = run.done.stdout.splitlines()
    assert run.at - float(killed) < seconds + 15
    assert numbers and not run.left
    again = RunDir(run.folder)
    again.hold()
    again.release()
