"""A fork server with an engine that loads nothing."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.fleet import engine_process, fork_server
from cluster.fleet.engine_process import EngineProcess
from cluster.fleet.fork_server import ForkServer, forked
from rollout.config import EngineConfig
from tests.runs import ROOT

NAME = "student engine 0"
CONFIG = EngineConfig(cpu_threads=1)
# The scripts of both processes, with an engine that says what it is, and whose core is a process that it forks.
COMMON = """
import asyncio, multiprocessing, os, signal, sys, time
from pathlib import Path
from cluster.fleet import engine_process, fork_server

class Engine:
    def __init__(self, name, log):
        print(f"the output of {name}", flush=True)

    async def ask(self, method, *arguments):
        return await getattr(self, method)(*arguments)

    async def told(self):
        return os.getppid(), os.getcwd(), dict(os.environ)

    async def core(self):
        self.forked = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
        self.forked.start()
        return os.getpid(), self.forked.pid

    async def woken(self):
        return os.getpid(), signal.set_wakeup_fd(-1)

    async def held(self):
        time.sleep(600)

    async def titled(self, variable, title):
        import setproctitle

        os.environ[variable] = "a longer value"
        setproctitle.setproctitle(title)
        return open("/proc/self/comm").read().strip()

engine_process.HostedEngine = Engine
engine_process.load_vllm = Path(__file__).with_name("loaded").touch
engine_process.fork_cores = lambda: None
"""
SERVER = COMMON + "fork_server.main(*sys.argv[1:])"
OWN = COMMON + "engine_process.main(*sys.argv[1:])"
PARENT = """
import sys
from pathlib import Path
from cluster.fleet import fork_server
from rollout.config import EngineConfig

fork_server.SCRIPT = (sys.argv[1],)
fork_server.ForkServer(Path(sys.argv[2]), EngineConfig(cpu_threads=1), at_once=True)
print("begun", flush=True)
sys.stdin.read()
"""


def place_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a fork server of this test would listen."""
    for name, script in (("server.py", SERVER), ("own.py", OWN), ("parent.py", PARENT)):
        (folder / name).write_text(script)
    (folder / "log").write_text("last line\n")
    monkeypatch.setattr(fork_server, "SCRIPT", (str(folder / "server.py"),))
    monkeypatch.setattr(engine_process, "SCRIPT", (str(folder / "own.py"),))
    monkeypatch.setattr(os, "environ", os.environ | {"PYTHONPATH": str(ROOT)})
    return folder / "s"


@contextmanager
def serving(at: Path, at_once: bool = True) -> Iterator[ForkServer]:
    made = ForkServer(at, CONFIG, at_once)
    try:
        yield made
    finally:
        made._process.kill()
        made._process.wait()


def run(at: Path, use: Callable[[EngineProcess], Awaitable[Any]]) -> Any:
    """What `use` finds of an engine that asks there."""

    async def asked() -> Any:
        process = EngineProcess(NAME, str(at.with_name("log")), CONFIG, partial(forked, at))
        try:
            return await asyncio.wait_for(use(process), 60)
        finally:
            process._process.kill()
            await asyncio.to_thread(process._process.wait)

    return asyncio.run(asked())


async def forked_by(process: EngineProcess) -> Any:
    return (await process.ask("told"))[0]


def until(is_so: Callable[[], bool], seconds: float = 120.0) -> bool:
    end = time.monotonic() + seconds
    while not is_so() and time.monotonic() < end:
        time.sleep(0.05)
    return is_so()


def ended(number: int) -> bool:
    """Within a while."""

    def is_gone() -> bool:
        with suppress(psutil.NoSuchProcess):
            return bool(psutil.Process(number).status() == psutil.STATUS_ZOMBIE)
        return True

    return until(is_gone)
