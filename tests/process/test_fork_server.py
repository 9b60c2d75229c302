"""The fork server with an engine that loads nothing: what it forks is the actor's in all but its parent, ends with the
actor and with the server, and is begun by the actor itself where no server forks it."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from cluster.config import load_recipe
from cluster.fleet import engine_process, fork_server, launch
from cluster.fleet.calls import Died
from cluster.fleet.engine_process import EngineProcess
from cluster.fleet.fork_server import Forked, ForkRequest, ForkServer, place
from cluster.fleet.placement import Share, make_plan
from rollout.config import EngineConfig
from rollout.vllm_quirks.environment import cpu_environment
from tests.forking import CONFIG, NAME, ended, forked_by, place_for, run, serving, until
from tests.runs import RECIPE


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return place_for(tmp_path, monkeypatch)


@pytest.fixture
def server(at: Path) -> Iterator[ForkServer]:
    with serving(at) as made:
        yield made


def test_a_fork_has_the_actors_environment_folder_and_output(
    at: Path, server: ForkServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The server's own have changed since: a variable more, one less, another value."""
    began, wanted = psutil.Process(server._process.pid).environ(), engine_process.environment(CONFIG)
    assert all(began[key] == wanted[key] for key in ("LD_PRELOAD", *cpu_environment({}, CONFIG)))
    changed = {key: value for key, value in os.environ.items() if key != "HOME"}
    monkeypatch.setattr(os, "environ", changed | {"ONLY_HERE": "1", "PATH": "elsewhere"})
    monkeypatch.chdir(at.parent)

    async def use(process: EngineProcess) -> Any:
        return await process.ask("told")

    parent, folder, environment = run(at, use)
    assert (parent, folder) == (server._process.pid, str(at.parent))
    assert environment == engine_process.environment(CONFIG)
    assert "HOME" not in environment and environment["ONLY_HERE"] == "1"
    assert capfd.readouterr().out == f"the output of {NAME}\n"


def test_a_forks_core_can_be_named(at: Path, server: ForkServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the first variable that the actor has is set again."""
    monkeypatch.setattr(os, "environ", {"SET_AGAIN": "1"} | os.environ)

    async def use(process: EngineProcess) -> str:
        return str(await process.ask("titled", "SET_AGAIN", "VLLM::EngineCore"))

    assert run(at, use) == "VLLM::EngineCor"  # Linux keeps 15 characters


@pytest.mark.parametrize("at_once", [True, False])
def test_engines_are_forked_one_after_another(at: Path, at_once: bool) -> None:
    """By one that imports at once, and by one that waits for the first."""
    loaded = at.with_name("loaded")
    with serving(at, at_once) as made:
        assert until(loaded.exists, 120.0 if at_once else 2.0) == at_once
        assert [run(at, forked_by) for _ in range(3)] == [made._process.pid] * 3


def test_one_that_ends_is_told_with_its_status(at: Path, server: ForkServer) -> None:
    async def use(process: EngineProcess) -> Any:
        engine, core = await process.ask("core")
        assert process.processes() == (engine,)
        os.kill(engine, signal.SIGTERM)
        with pytest.raises(Died, match=rf"^{NAME} died: its process ended with status -15\n  last lines of .*log:"):
            await process.ask("told")
        return engine, core

    engine, core = run(at, use)
    assert ended(core) and ended(engine)
    assert server._process.poll() is None


def test_one_whose_actor_is_gone_ends_also_amid_something(at: Path, server: ForkServer) -> None:
    async def use(process: EngineProcess) -> Any:
        found = await process.ask("core")
        asyncio.ensure_future(process.ask("held")).add_done_callback(lambda task: task.exception())
        await asyncio.sleep(0.2)
        process._process._server.close()  # type: ignore[attr-defined]
        return found

    assert all(map(ended, run(at, use)))
    assert run(at, forked_by) == server._process.pid


def test_one_that_is_stopped_ends_when_it_is_killed(at: Path, server: ForkServer) -> None:
    async def use(process: EngineProcess) -> Any:
        engine, _ = await process.ask("core")
        os.kill(engine, signal.SIGSTOP)
        process._process.kill()
        return await asyncio.to_thread(process._process.wait), engine

    status, engine = run(at, use)
    assert status == -signal.SIGKILL and ended(engine)


def test_engines_end_with_the_server_and_the_server_with_who_began_it(at: Path) -> None:
    command = [sys.executable, str(at.with_name("parent.py")), str(at.with_name("server.py")), str(at)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=dict(os.environ), **pipes) as parent:  # type: ignore[call-overload]
        assert parent.stdout.readline() == b"begun\n"
        (server,) = psutil.Process(parent.pid).children()

        async def use(process: EngineProcess) -> Any:
            found = await process.ask("core")
            parent.kill()
            with pytest.raises(Died, match="status -9"):
                await process.ask("held")
            return found

        assert all(map(ended, run(at, use))) and ended(server.pid)


@pytest.mark.parametrize("there", ["nothing", "its socket only", "one that does not answer"])
def test_where_no_server_forks_it_the_actor_begins_one_itself(
    at: Path, there: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fork_server, "FORKS_S", 0.5)
    with socket.socket(socket.AF_UNIX) as listener:
        if there != "nothing":
            listener.bind(str(at))
        if there == "one that does not answer":
            listener.listen(1)

        assert run(at, forked_by) == os.getpid()


def test_a_place_is_of_a_node_and_of_what_openmp_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    own = place(CONFIG, "a" * 56)
    monkeypatch.setenv("ONLY_HERE", "1")
    assert own == place(EngineConfig(cpu_threads=1, window=77), "a" * 56)
    assert len({own, place(CONFIG, "b" * 56), place(EngineConfig(cpu_threads=2), "a" * 56)}) == 3


def test_a_service_that_starts_again_has_a_server_of_its_own(at: Path, server: ForkServer) -> None:
    with serving(at) as successor:
        assert run(at, forked_by) == successor._process.pid


def test_a_fork_has_nothing_of_the_servers(at: Path, server: ForkServer) -> None:
    """Beside another, whose actor's connection the server holds."""

    async def use(process: EngineProcess) -> tuple[set[str], int]:
        engine, woken = await process.ask("woken")
        assert woken == -1 and not caught(engine) & 1 << signal.SIGCHLD - 1
        return sockets(engine), caught(server._process.pid) & 1 << signal.SIGCHLD - 1

    async def beside(process: EngineProcess) -> None:
        await forked_by(process)
        found, of_server = await asyncio.to_thread(run, at, use)
        assert of_server and found and not found & sockets(server._process.pid)

    run(at, beside)


def sockets(number: int) -> set[str]:
    found = {os.readlink(link) for link in Path(f"/proc/{number}/fd").iterdir()}
    return {one for one in found if one.startswith("socket:")}


def caught(number: int) -> int:
    """The signals that the process has handlers for, a bit each."""
    lines = Path(f"/proc/{number}/status").read_text().splitlines()
    return next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:"))


@contextmanager
def unread(at: Path) -> Iterator[Forked]:
    """An engine's process of whose end only the server tells."""
    mine, theirs = socket.socketpair()
    with mine, theirs:
        yield Forked(at, ForkRequest(NAME, "log", engine_process.environment(CONFIG), "/"), theirs)


def test_one_that_has_ended_is_forgotten(at: Path, server: ForkServer) -> None:
    with unread(at) as process:
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait() == -signal.SIGTERM == process.wait()
    assert run(at, forked_by) == server._process.pid


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_server_that_is_gone_or_hangs_has_lost_its_engines(
    at: Path, server: ForkServer, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setattr(fork_server, "ENDS_S", 0.5)
    with unread(at) as process:
        server._process.send_signal(number)
        process.kill()
        assert process.wait() == -signal.SIGKILL == process.wait()
        server._process.kill()
        assert ended(process.pid)


@pytest.mark.parametrize(
    ("settings", "nodes", "wanted"),
    [
        (["teacher.cpu_threads=1"], [True], [(1, True)]),
        (["teacher.cpu_threads=2"], [True, False], [(1, True), (2, True)]),
        (["teacher.cpu_threads=2"], [True, True], [(1, False), (2, False)]),
        (["teacher.cpu_threads=2", "teacher.url=http://teacher:8000/v1"], [True], [(1, True)]),
        (["teacher.cpu_threads=2", "learner.lora_rank=4"], [True], [(1, True)]),
    ],
    ids=["one", "two", "hosts", "url", "adapter"],
)
def test_a_host_has_a_server_for_each_configuration_of_which_there_are_engines(
    monkeypatch: pytest.MonkeyPatch, settings: list[str], nodes: list[bool], wanted: list[tuple[int, bool]]
) -> None:
    """It imports before any engine asks where there is no other host."""
    here = SimpleNamespace(get_node_id=lambda: "a" * 56)
    context = {"nodes": lambda: [{"Alive": alive} for alive in nodes], "get_runtime_context": lambda: here}
    monkeypatch.setattr(launch, "ray", SimpleNamespace(**context))
    monkeypatch.setattr(launch, "ForkServer", lambda at, config, at_once: (config.cpu_threads, at_once))
    recipe = load_recipe(RECIPE, ["student.cpu_threads=1", *settings])
    assert launch.fork_servers(recipe, make_plan(recipe, [Share(8, 0)])) == wanted
    assert not launch.fork_servers(recipe, make_plan(recipe, [Share(8, 8)]))
