"""An engine in a process of its own, which Ray knows nothing of: for CPUs, where vLLM forks its core from it. It is
begun here, or forked by `cluster.fleet.fork_server`.

actor                                          the engine's process                        the engine's core
EngineProcess.ask --(number, method, arguments)--> HostedEngine.ask --> AsyncLLM --vLLM's--> the model
              <--(number, error, answer)----------
"""

import asyncio
import os
import pickle
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import Any, NoReturn, Protocol

from cluster.fleet.calls import Died
from cluster.fleet.hosted_engine import HostedEngine, log_tail
from cluster.fleet.processes import collect_seldom
from rollout.config import EngineConfig
from rollout.ending import end_forks_with_their_parents, end_with
from rollout.engine import load_vllm
from rollout.vllm_quirks.environment import cpu_environment
from rollout.vllm_quirks.forking import fork_cores, preloaded

SCRIPT = ("-P", "-m", "cluster.fleet.engine_process")
SIZE = 8  # bytes before a message, with how many it has
READ = ("builtins", "cluster", "rollout", "learner", "evidence")  # whose errors every process can read
UNSENDABLE = (pickle.PickleError, TypeError, AttributeError, ValueError)  # as pickle raises them
Message = tuple[Any, ...]


class Child(Protocol):
    """The engine's process, as a `subprocess.Popen` of it."""

    pid: int
    returncode: int | None

    def kill(self) -> None: ...

    def wait(self) -> int: ...


Begin = Callable[[str, str, EngineConfig], tuple[Child, socket.socket]]  # of an engine: its name, its log


def begun(name: str, log: str, config: EngineConfig) -> tuple[Child, socket.socket]:
    """The process of an engine begins, and imports vLLM while nothing is asked of it; and the connection to it."""
    mine, theirs = socket.socketpair()
    with theirs:
        words = [*SCRIPT, name, log, str(theirs.fileno()), str(os.getpid())]
        command, env = [sys.executable, *words], environment(config)
        return subprocess.Popen(command, pass_fds=[theirs.fileno()], env=env), mine


def environment(config: EngineConfig) -> dict[str, str]:
    """Of a process that holds such an engine, or forks those that do."""
    path = os.pathsep.join(filter(None, sys.path))  # which Ray has given the actor
    own = {"PYTHONPATH": path, "LD_PRELOAD": preloaded(os.environ)}
    # `setproctitle` names no core whose first variable is set again, as others are.
    return own | cpu_environment(os.environ, config) | own


class EngineProcess:
    """The actor's end.

    name: of the engine, for messages. log: of the actor, where the process's output goes too.
    """

    def __init__(self, name: str, log: str, config: EngineConfig, begin: Begin = begun) -> None:
        self.name, self.log = name, log
        self._process, self._socket = begin(name, log, config)
        self._numbers, self._asked = count(), dict[int, asyncio.Future[Any]]()
        self._writer: asyncio.StreamWriter | None = None
        self._opening = asyncio.Lock()

    def processes(self) -> Sequence[int]:
        """That hold the engine, which may not be this one's child."""
        return (self._process.pid,)

    async def ask(self, method: str, *arguments: Any) -> Any:
        """What `HostedEngine.ask` answers there.

        Raises:
            Died: the process, or the engine's core, is no more.
            what the method raises.
        """
        writer = await self._open()
        if writer.is_closing():
            await self._reading
            raise self._death()
        number = next(self._numbers)
        self._asked[number] = answer = asyncio.get_running_loop().create_future()
        _send(writer, (number, method, arguments))
        return await answer

    async def _open(self) -> asyncio.StreamWriter:
        async with self._opening:
            if self._writer is None:
                reader, self._writer = await asyncio.open_unix_connection(sock=self._socket)
                self._reading = asyncio.create_task(self._read(reader, self._writer))
        return self._writer

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (message := await _receive(reader)) is not None:
                number, error, answer = message
                asked = self._asked.pop(number)
                if asked.cancelled():
                    continue
                asked.set_exception(error) if error is not None else asked.set_result(answer)
        finally:  # nobody would read what it still says
            writer.close()
            self._process.kill()
            await asyncio.to_thread(self._process.wait)
            for asked in self._asked.values():
                if not asked.done():
                    asked.set_exception(self._death())

    def _death(self) -> Died:
        status = self._process.returncode
        return Died(f"{self.name} died: its process ended with status {status}\n{log_tail(self.log)}")


async def _receive(reader: asyncio.StreamReader) -> Message | None:
    """The next message; None at the end."""
    try:
        size = int.from_bytes(await reader.readexactly(SIZE), "little")
        return tuple(pickle.loads(await reader.readexactly(size)))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


def _send(writer: asyncio.StreamWriter, message: Message) -> None:
    content = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    writer.write(len(content).to_bytes(SIZE, "little") + content)


async def serve(hosted: HostedEngine, connection: socket.socket) -> None:
    """Answers what comes over the connection, each as soon as it is there, until the other end is gone."""
    reader, writer = await asyncio.open_unix_connection(sock=connection)
    under_way = set[asyncio.Task[Any]]()
    while (message := await _receive(reader)) is not None:
        number, method, arguments = message
        task = asyncio.create_task(hosted.ask(method, *arguments))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
        task.add_done_callback(partial(_answer, writer, number))


def _answer(writer: asyncio.StreamWriter, number: int, task: "asyncio.Task[Any]") -> None:
    if task.cancelled():  # as the process ends
        return
    error = task.exception()
    answer = None if error is not None else task.result()
    try:
        _send(writer, (number, None if error is None else plain(error), answer))
    except UNSENDABLE as reason:
        _send(writer, (number, RuntimeError(f"found an answer that cannot be sent: {reason}"), None))


def plain(error: BaseException) -> BaseException:
    """The error as a process without vLLM can read it, with where it came from as a note."""
    said = error
    if not _is_read_everywhere(error):
        kind = next((kind for kind in (ValueError, OSError) if isinstance(error, kind)), None)
        said = kind(str(error)) if kind else RuntimeError(f"{type(error).__name__}: {error}")
    said.add_note("".join(traceback.format_exception(error)))
    return said


def _is_read_everywhere(error: BaseException) -> bool:
    if type(error).__module__.partition(".")[0] not in READ:
        return False
    try:  # not one that is made of more than its message
        pickle.loads(pickle.dumps(error))
    except UNSENDABLE:
        return False
    return True


def main(name: str, log: str, descriptor: str, parent: str) -> None:
    """The engine's process, which ends with the actor's."""
    end_with(int(parent))
    load()
    run(name, log, socket.socket(fileno=int(descriptor)))


def load() -> None:
    """All that does not depend on the engine."""
    collect_seldom()
    load_vllm()
    collect_seldom()  # nor are pages written to that a fork shares
    fork_cores()


def run(name: str, log: str, connection: socket.socket) -> NoReturn:
    """The engine, until the other end of the connection is gone."""
    os.set_inheritable(connection.fileno(), False)
    os.register_at_fork(after_in_child=connection.close)  # the core's is not its own
    end_forks_with_their_parents()
    asyncio.run(serve(HostedEngine(name, log), connection))
    os._exit(0)  # the actor is no more, and so is what would be told to end


if __name__ == "__main__":
    main(*sys.argv[1:])
