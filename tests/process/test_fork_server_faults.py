"""A fork server, which all engines of a host end with, goes on whatever becomes of those that ask it."""

import asyncio
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.fleet import fork_server
from cluster.fleet.engine_process import EngineProcess
from cluster.fleet.fork_server import ForkServer
from tests.forking import COMMON, ended, forked_by, place_for, run, serving


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return place_for(tmp_path, monkeypatch)


@pytest.fixture
def server(at: Path) -> Iterator[ForkServer]:
    with serving(at) as made:
        yield made


@pytest.mark.parametrize("stays", [False, True])
@pytest.mark.parametrize(
    "said", [b"", b"\1", (1 << 20).to_bytes(8, "little") + b"half"], ids=["nothing", "one", "half"]
)
def test_who_asks_for_nothing_whole_is_left(at: Path, said: bytes, stays: bool) -> None:
    """And the next engine is forked."""
    at.with_name("server.py").write_text(f"{COMMON}fork_server.ASKS_S = 1.0\nfork_server.main(*sys.argv[1:])")
    with serving(at) as made, socket.socket(socket.AF_UNIX) as asker:
        asker.connect(str(at))
        asker.sendall(said)
        if not stays:
            asker.close()
        assert run(at, forked_by) == made._process.pid


def test_who_has_waited_too_long_shares_its_connection_with_nobody(
    at: Path, server: ForkServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own engine has it then, and is still loading when the server goes on."""
    at.with_name("own.py").write_text(f"{COMMON}time.sleep(5); engine_process.main(*sys.argv[1:])")
    assert run(at, forked_by) == server._process.pid
    monkeypatch.setattr(fork_server, "FORKS_S", 0.5)
    server._process.send_signal(signal.SIGSTOP)

    async def use(process: EngineProcess) -> Any:
        asked = asyncio.ensure_future(forked_by(process))
        await asyncio.sleep(0.2)
        with socket.socket(socket.AF_UNIX) as next_one:  # which keeps the server busy
            next_one.connect(str(at))
            server._process.send_signal(signal.SIGCONT)
            return await asked

    assert run(at, use) == os.getpid()


def test_an_engine_and_its_actor_that_end_at_once_end_nothing_else(at: Path, server: ForkServer) -> None:
    async def use(process: EngineProcess) -> None:
        engine, _ = await process.ask("core")
        with socket.socket(socket.AF_UNIX) as busy:
            busy.connect(str(at))
            time.sleep(0.5)  # while the server waits for what this one asks
            os.kill(engine, signal.SIGKILL)
            assert ended(engine)
            time.sleep(0.5)
            process._process.kill()
        assert await asyncio.to_thread(process._process.wait) == -signal.SIGKILL

    run(at, use)
    assert run(at, forked_by) == server._process.pid


def test_a_host_without_room_for_one_more_process_keeps_the_others(at: Path) -> None:
    full = """
fork, answers = os.fork, iter([True, False, True])
os.fork = lambda: fork() if next(answers) else os.open("/nowhere", 0)
"""
    at.with_name("server.py").write_text(COMMON + full + "fork_server.main(*sys.argv[1:])")

    async def use(process: EngineProcess) -> Any:
        first = await forked_by(process)
        others = [await asyncio.to_thread(run, at, forked_by) for _ in range(2)]
        return [first, *others, await forked_by(process)]

    with serving(at) as made:
        assert run(at, use) == [made._process.pid, os.getpid(), made._process.pid, made._process.pid]
