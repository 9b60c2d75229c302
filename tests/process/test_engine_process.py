"""An engine's process of its own, with a stand-in for the engine: what is asked and answered, and how it ends."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

from cluster.fleet import engine_process
from cluster.fleet.calls import Died
from cluster.fleet.engine_process import EngineProcess
from cluster.fleet.hosted_engine import HostedEngine
from rollout.config import EngineConfig
from tests.runs import ROOT

NAME = "student engine 0"
# The process's own script, with an engine that loads nothing, and whose core is a process that it forks.
SCRIPT = """
import asyncio, multiprocessing, os, sys, time
from cluster.fleet import engine_process

class OfVllm(Exception):
    pass

class Engine:
    def __init__(self, name, log):
        print(f"the output of {name} in {os.environ['OMP_NUM_THREADS']} thread", flush=True)

    async def ask(self, method, *arguments):
        return await getattr(self, method)(*arguments)

    async def wait(self, seconds):
        await asyncio.sleep(seconds)
        return seconds

    async def core(self):
        self.forked = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
        self.forked.start()
        return self.forked.pid

    async def twice(self, numbers):
        return 2 * numbers

    async def late(self):
        raise TimeoutError("no answer")

    async def strange(self):
        raise OfVllm("a request that is not known")

    async def generator(self):
        return (number for number in range(3))

    async def titled(self, variable, title):
        import setproctitle

        os.environ[variable] = "a longer value"
        setproctitle.setproctitle(title)
        return open("/proc/self/comm").read().strip()

    async def made_of_more(self):
        from rollout.template import Refusal

        raise Refusal("model", [], ValueError("never"))

engine_process.HostedEngine = Engine
engine_process.load_vllm = engine_process.fork_cores = lambda: None
engine_process.main(*sys.argv[1:])
"""
PARENT = """
import asyncio, sys, time
from cluster.fleet import engine_process
from rollout.config import EngineConfig

async def main():
    engine_process.SCRIPT = (sys.argv[1],)
    process = engine_process.EngineProcess("student engine 0", sys.argv[2], EngineConfig())
    print(await process.ask("core"), flush=True)
    time.sleep(600)

asyncio.run(main())
"""


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], EngineProcess]]:
    """Starts the process, whose log is `tmp_path`/log; nothing of it is left afterwards."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    (tmp_path / "log").write_text("first line\nlast line\n")
    monkeypatch.setattr(engine_process, "SCRIPT", (str(script),))
    monkeypatch.setattr(os, "environ", os.environ | {"PYTHONPATH": str(ROOT)})
    made: list[EngineProcess] = []

    def make() -> EngineProcess:
        made.append(EngineProcess(NAME, str(tmp_path / "log"), EngineConfig(cpu_threads=1)))
        return made[-1]

    yield make
    for process in made:
        process._process.kill()
        process._process.wait()


def run(begin: Callable[[], EngineProcess], use: Callable[[EngineProcess], Awaitable[Any]]) -> Any:
    async def asked() -> Any:
        return await asyncio.wait_for(use(begin()), 60)

    return asyncio.run(asked())


def test_a_core_has_the_title_that_vllm_gives_it(
    begin: Callable[[], EngineProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever variable is set again before: the first one that a process begins with must not be."""
    monkeypatch.setattr(os, "environ", {"SET_AGAIN": "1"} | os.environ)

    async def use(process: EngineProcess) -> str:
        return str(await process.ask("titled", "SET_AGAIN", "VLLM::EngineCore"))

    assert run(begin, use) == "VLLM::EngineCor"  # Linux keeps 15 characters


def test_each_answer_comes_as_soon_as_it_is_there(begin: Callable[[], EngineProcess]) -> None:
    async def use(process: EngineProcess) -> list[float]:
        came: list[float] = []

        async def wait(seconds: float) -> None:
            came.append(await process.ask("wait", seconds))

        await asyncio.gather(*map(wait, (0.4, 0.0, 0.2)))
        return came

    assert run(begin, use) == [0.0, 0.2, 0.4]


def test_what_is_asked_and_answered_may_be_large(begin: Callable[[], EngineProcess]) -> None:
    numbers = np.arange(1 << 20)
    assert np.array_equal(run(begin, lambda process: process.ask("twice", numbers)), 2 * numbers)


def test_an_error_arrives_as_itself_and_one_of_a_library_as_its_kind_and_words(
    begin: Callable[[], EngineProcess],
) -> None:
    with pytest.raises(TimeoutError) as error:
        run(begin, lambda process: process.ask("late"))
    assert str(error.value) == "no answer" and "in late" in error.value.__notes__[0]  # where it came from
    with pytest.raises(RuntimeError) as of_vllm:
        run(begin, lambda process: process.ask("strange"))
    assert str(of_vllm.value) == "OfVllm: a request that is not known"


def test_what_cannot_be_sent_is_an_error_and_the_next_question_is_answered(
    begin: Callable[[], EngineProcess],
) -> None:
    async def use(process: EngineProcess) -> float:
        with pytest.raises(RuntimeError, match=r"^found an answer that cannot be sent: .*generator"):
            await process.ask("generator")
        with pytest.raises(ValueError, match=r"^model: found a chat template .*never"):
            await process.ask("made_of_more")
        return float(await process.ask("wait", 0.0))

    assert run(begin, use) == 0.0


def test_openmp_has_its_threads_before_the_process_begins(
    begin: Callable[[], EngineProcess], capfd: pytest.CaptureFixture[str]
) -> None:
    run(begin, lambda process: process.ask("wait", 0.0))
    assert capfd.readouterr().out == f"the output of {NAME} in 1 thread\n"


def test_a_process_that_is_killed_is_told_with_its_log_and_takes_its_core_along(
    begin: Callable[[], EngineProcess],
) -> None:
    """Both what waits for it and what is asked afterwards. Nothing of it is left, not even its number."""
    died = rf"^{NAME} died: its process ended with status -9\n  last lines of .*log:\n    first line\n    last line$"

    async def use(process: EngineProcess) -> None:
        core = await process.ask("core")
        waits = asyncio.create_task(process.ask("wait", 600))
        await process.ask("wait", 0.0)
        own = psutil.Process(process._process.pid)
        everyone = [own, psutil.Process(core)]
        own.kill()
        for asked in (waits, process.ask("wait", 0.0)):
            with pytest.raises(Died, match=died):
                await asked
        assert not psutil.wait_procs(everyone[1:], timeout=20)[1]
        assert not psutil.pid_exists(own.pid)

    run(begin, use)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
def test_the_process_and_its_core_end_with_the_actor(
    begin: Callable[[], EngineProcess], tmp_path: Path, number: signal.Signals
) -> None:
    parent_script = tmp_path / "parent.py"
    parent_script.write_text(PARENT)
    command = [sys.executable, str(parent_script), str(tmp_path / "script.py"), str(tmp_path / "log")]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    try:
        assert parent.stdout is not None
        core = next(int(line) for line in parent.stdout if line.strip().isdecimal())
        children = psutil.Process(parent.pid).children(recursive=True)
        assert len(children) == 2 and core in [child.pid for child in children]
        parent.send_signal(number)
        parent.wait()
        assert not psutil.wait_procs(children, timeout=60)[1]
    finally:
        parent.kill()
        parent.wait()


def hosted(tmp_path: Path, **methods: Any) -> HostedEngine:
    (tmp_path / "log").write_text("last line\n")
    made = HostedEngine(NAME, str(tmp_path / "log"))
    made.engine = SimpleNamespace(**methods) if methods else None  # type: ignore[assignment]
    return made


def test_a_dead_core_speaks_through_its_log(tmp_path: Path) -> None:
    from vllm.v1.engine.exceptions import EngineDeadError

    async def sample(*_: Any) -> None:
        raise EngineDeadError

    with pytest.raises(Died, match=rf"^{NAME} died: .*\n  last lines of .*log:\n    last line$"):
        asyncio.run(hosted(tmp_path, sample=sample).ask("sample", []))


def test_what_a_push_tells_an_engine_is_plain_until_it_is_there(tmp_path: Path) -> None:
    told: list[Any] = []

    async def take(request: Any) -> None:
        told.append(request)

    engine = hosted(tmp_path, init_weight_transfer_engine=take, update_weights=take)
    asyncio.run(engine.ask("init_weight_transfer_engine", {"rank_offset": 1}))
    asyncio.run(engine.ask("update_weights", {"names": ["a"]}))
    assert [type(one).__name__ for one in told] == ["WeightTransferInitRequest", "WeightTransferUpdateRequest"]
    assert (told[0].init_info, told[1].update_info) == ({"rank_offset": 1}, {"names": ["a"]})


def test_an_engine_that_has_not_started_counts_nothing_and_has_nothing_to_end(tmp_path: Path) -> None:
    assert asyncio.run(hosted(tmp_path).ask("stats")) == {}
    asyncio.run(hosted(tmp_path).ask("shutdown"))
