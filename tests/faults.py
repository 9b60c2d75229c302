"""A real run under way, and what can be done to its processes."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from rollout.ending import end_with_parent
from tests.runs import ROOT

POLL_S = 0.1
CORE, WORKER = "VLLM::EngineCore", "VLLM::Worker"  # as vLLM calls them, the second with its rank
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
AGENTS_S = 30.0  # they speak for a minute to a head that was killed with its driver (findings/)


def core() -> None:
    """For a process in the place of an engine's core: it ends as that does, and by nothing else."""
    end_with_parent()
    time.sleep(120)


@dataclass(frozen=True)
class Through:
    """How a run is started on a cluster. command: the words with which its driver is. family: every process of the
    cluster."""

    command: Callable[[Sequence[str]], list[str]]
    env: dict[str, str]
    family: Callable[[], list[psutil.Process]]


class UnderWay:
    """`edge-opd` with these arguments, as a process; on this host, unless `through` says otherwise.

    lines: of its output, each with the moment at which it came (`time.monotonic`).
    """

    def __init__(self, arguments: list[str], through: Through | None = None) -> None:
        self._through = through
        command = [sys.executable, "-m", "cluster", *arguments]
        env = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        if through is not None:
            command, env = through.command(command), through.env
        env = env | {"PYTHONUNBUFFERED": "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(command, text=True, cwd=ROOT, env=env, **pipes)  # type: ignore[call-overload]
        self.seen: set[psutil.Process] = set()
        self.lines: list[tuple[float, str]] = []
        self._errors: list[str] = []
        self._readers = [threading.Thread(target=read, daemon=True) for read in (self._read, self._read_errors)]
        for reader in self._readers:
            reader.start()

    def _read(self) -> None:
        self.lines.extend((time.monotonic(), line) for line in self.process.stdout)

    def _read_errors(self) -> None:
        self._errors.extend(self.process.stderr)

    def said(self) -> str:
        """Its output so far."""
        return "".join(line for _, line in self.lines)

    def processes(self) -> dict[str, psutil.Process]:
        """Its actors that are alive by the names of their logs, the core of each engine as "NAME core", the process
        that has forked it as "NAME process", one of the workers that a core has with tensor parallelism as "NAME
        worker", and what CPU engines are forked from as "fork server"."""
        found = dict[str, psutil.Process]()
        everyone = self._everyone() if self.process.poll() is None else []
        for process in everyone:
            with suppress(psutil.NoSuchProcess, FileNotFoundError):
                name, number = engine_of(process)
                if number == process.pid:
                    found[name] = process
                elif name_of(process).startswith(CORE):
                    found |= core_of(name, process, everyone)
                elif is_server(process) and not is_server(process.parent()):
                    found["fork server"] = process
        self.seen.update(everyone if self._through is None else found.values())  # a cluster's Ray outlives a run
        return found

    def _everyone(self) -> list[psutil.Process]:
        if self._through is not None:
            return self._through.family()
        return psutil.Process(self.process.pid).children(recursive=True)

    def wait_until(self, what: str, is_so: Callable[[], bool], seconds: float = 400.0) -> None:
        """AssertionError with what it said when it ends before, or within `seconds`."""
        end = time.monotonic() + seconds
        while not is_so():
            assert self.process.poll() is None, (what, self.end())
            assert time.monotonic() < end, (f"{what}: not within {seconds:g} s", self.said(), self.processes())
            time.sleep(POLL_S)

    def send(self, name: str, number: signal.Signals) -> None:
        """Once there is a process of that name: one that is replaced is gone for a while."""
        self.wait_until(name, lambda: name in self.processes())
        self.processes()[name].send_signal(number)

    def end(self, seconds: float = 400.0) -> tuple[int, str, str]:
        """Exit status, output and errors."""
        status = self.process.wait(timeout=seconds)
        for reader in self._readers:
            reader.join(timeout=10)
        return status, self.said(), "".join(self._errors)

    def left_behind(self) -> list[psutil.Process]:
        """Processes that outlive it by more than a minute; Ray's agents by `AGENTS_S` more."""
        _, alive = psutil.wait_procs(list(self.seen), timeout=60)
        agents = [process for process in alive if name_of(process) in AGENTS]
        _, late = psutil.wait_procs(agents, timeout=AGENTS_S)
        return [process for process in alive if process not in agents] + late


def engine_of(process: psutil.Process) -> tuple[str, int]:
    """The name of the engine, or the other actor, to whose log its output goes, and the number of the actor's process;
    -1 where it goes elsewhere."""
    name, _, number = Path(os.readlink(f"/proc/{process.pid}/fd/1")).stem.rpartition("-")
    return name, int(number) if number.isdecimal() else -1


def core_of(name: str, core: psutil.Process, everyone: Sequence[psutil.Process]) -> dict[str, psutil.Process]:
    """An engine's core, a worker of it, and who has forked it: whoever took it, once that is gone, is not the
    engine's."""
    parent = core.parent()
    workers = [child for child in core.children() if name_of(child).startswith(WORKER)]
    processes = {f"{name} process": parent} if parent in everyone and "-P" in parent.cmdline() else {}
    return {f"{name} core": core, **processes, **{f"{name} worker": worker for worker in workers[-1:]}}


def is_server(process: psutil.Process | None) -> bool:
    """Whether CPU engines are forked from it, or it is such a fork, unless it has another name by now."""
    with suppress(psutil.NoSuchProcess):
        return process is not None and "cluster.fleet.fork_server" in process.cmdline()
    return False


def title_of(process: psutil.Process) -> str:
    """What it is called, without the folder of its program, and its number."""
    with suppress(psutil.NoSuchProcess):
        program, *words = process.cmdline() or [process.name()]
        title = " ".join([Path(program).name.strip(), *words])
        return f"{title[:100]} ({process.pid}, {process.status()})"
    return f"({process.pid})"


def name_of(process: psutil.Process) -> str:
    """Empty for one that has just ended."""
    with suppress(psutil.NoSuchProcess):
        return str(process.name())
    return ""


@contextmanager
def under_way(arguments: list[str], through: Through | None = None) -> Iterator[UnderWay]:
    """Within it the run goes on; nothing of it is left afterwards."""
    run = UnderWay(arguments, through)
    try:
        yield run
    finally:
        run.processes()
        if run.process.poll() is None:
            run.process.kill()
            run.process.wait()
        for process in run.seen:
            if process.is_running():
                process.kill()
