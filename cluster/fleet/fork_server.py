"""A process that has imported vLLM, and forks the CPU engines of its host: the import takes ten seconds of a processor,
for each engine and for each that is replaced, and a fork none.

rollout service                  fork server                                     an engine's actor
ForkServer ------- begins -----> imports, forks <--- ForkRequest, descriptors --- Forked
                                 the engine's process ---- number, status ------>

It ends with the rollout service, and so do the engines that it forked; one of them also as soon as its actor is gone.
"""

import os
import pickle
import select
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cluster.fleet import engine_process
from cluster.fleet.engine_process import Child, begun, environment
from rollout.config import EngineConfig
from rollout.ending import end_with
from rollout.vllm_quirks.environment import cpu_environment

SCRIPT = ("-P", "-m", "cluster.fleet.fork_server")
SIZE = 8  # bytes of a number, on the way
FORKS_S = 60.0  # within which a server has imported and forked
ASKS_S = ENDS_S = 10.0  # within which who asks has said for what; which a process that was killed takes to end
LOST = -signal.SIGKILL  # how an engine has ended whose fork server is no more
STREAMS = 1, 2  # output and errors, which go where the actor's do


@dataclass(frozen=True)
class ForkRequest:
    """What an engine's process is to be: its name, its log, and the actor's environment and folder."""

    name: str
    log: str
    environment: Mapping[str, str]
    folder: str


def place(config: EngineConfig, node: str) -> Path:
    """Where engines of this configuration ask to be forked, in the run's folder of this host.

    node: Ray's, since several may see one folder. OpenMP reads its own variables as a process begins.
    """
    of_openmp = sorted(cpu_environment({}, config).items())
    return Path(tempfile.gettempdir()) / f"fork-{zlib.crc32(repr(of_openmp).encode()):08x}-{node[:8]}"


class ForkServer:
    """The rollout service's end.

    at: see `place`. at_once: whether it imports before the first engine asks.
    """

    def __init__(self, at: Path, config: EngineConfig, at_once: bool) -> None:
        at.unlink(missing_ok=True)  # of a service before
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(at))
            listener.listen(128)
            words = [*SCRIPT, str(listener.fileno()), str(os.getpid()), str(int(at_once))]
            command, env = [sys.executable, *words], environment(config)
            self._process = subprocess.Popen(command, pass_fds=[listener.fileno()], env=env)


class Forked:
    """An engine's process that a fork server has forked.

    Raises:
        OSError: the server has not, within `FORKS_S`.
    """

    returncode: int | None = None

    def __init__(self, at: Path, request: ForkRequest, connection: socket.socket) -> None:
        self._server = socket.socket(socket.AF_UNIX)
        try:
            self._server.settimeout(FORKS_S)
            self._server.connect(str(at))
            content = pickle.dumps(request)
            socket.send_fds(self._server, [_bytes(len(content))], [connection.fileno(), *STREAMS])
            self._server.sendall(content)
            self.pid = _number(self._server)
        except OSError:
            self._server.close()
            raise
        self._server.settimeout(ENDS_S)

    def kill(self) -> None:
        with suppress(OSError):  # it has ended
            self._server.shutdown(socket.SHUT_WR)

    def wait(self) -> int:
        if self.returncode is None:
            try:
                self.returncode = _number(self._server)
            except OSError:
                self.returncode = LOST
        return self.returncode


def forked(at: Path, name: str, log: str, config: EngineConfig) -> tuple[Child, socket.socket]:
    """The process of an engine and the connection to it, by the fork server `at` that place; where none answers, one of
    the actor's own, with a connection that no late fork reads."""
    mine, theirs = socket.socketpair()
    with theirs, suppress(OSError):
        return Forked(at, ForkRequest(name, log, environment(config), str(Path.cwd())), theirs), mine
    mine.close()
    return begun(name, log, config)


class ForkLoop:
    """The fork server's own side.

    listener: who wants an engine asks there.
    """

    def __init__(self, listener: socket.socket) -> None:
        self._listener, self._own = listener, os.getpid()
        self._woken, self._wake = socket.socketpair()
        self._wake.setblocking(False)
        self._askers: dict[int, socket.socket] = {}  # by the number of the process that each was given
        self._selector = selectors.DefaultSelector()

    def serve(self) -> tuple[ForkRequest, socket.socket]:
        """Forks what is asked for, and kills what nobody asks for any more, without end. It returns in the forks only,
        to each what it is to be, and its connection."""
        signal.signal(signal.SIGCHLD, lambda number, frame: None)  # or the next line has no effect
        signal.set_wakeup_fd(self._wake.fileno())
        self._selector.register(self._listener, selectors.EVENT_READ, self._fork)
        self._selector.register(self._woken, selectors.EVENT_READ, self._reap)
        while True:
            for key, _ in self._selector.select()[:1]:  # what it does may undo the next
                if (forked_here := key.data()) is not None:
                    return forked_here

    def _fork(self) -> tuple[ForkRequest, socket.socket] | None:
        asker, _ = self._listener.accept()
        descriptors: list[int] = []  # its connection, output and errors
        try:
            request = _asked(asker, descriptors)
            pid = os.fork()
        except (OSError, EOFError):  # not asked whole, or no room for a process
            asker.close()
        else:
            if pid == 0:
                self._leave(asker)
                _settle(request, descriptors[1:])
                return request, socket.socket(fileno=os.dup(descriptors[0]))
            self._askers[pid] = asker
            self._selector.register(asker, selectors.EVENT_READ, partial(self._kill, pid))
            _tell(asker, pid)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return None

    def _kill(self, pid: int) -> None:
        """Its actor is gone, or wants it gone. It is not reaped yet, so that the number is its own."""
        self._selector.unregister(self._askers[pid])
        os.kill(pid, signal.SIGKILL)

    def _reap(self) -> None:
        self._woken.recv(1024)
        for pid in list(self._askers):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                asker = self._askers.pop(pid)
                if asker in self._selector.get_map():
                    self._selector.unregister(asker)
                _tell(asker, os.waitstatus_to_exitcode(status))
                asker.close()

    def _leave(self, asker: socket.socket) -> None:
        """For a fork: what is the server's is not its own, and it ends with it."""
        end_with(self._own)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._selector.close()
        for one in (asker, self._listener, self._woken, self._wake, *self._askers.values()):
            one.close()


def _asked(asker: socket.socket, descriptors: list[int]) -> ForkRequest:
    """What is to be forked; its descriptors are added to those given.

    Raises:
        OSError, EOFError: it does not arrive whole.
    """
    asker.settimeout(ASKS_S)
    size, found, _, _ = socket.recv_fds(asker, SIZE, 1 + len(STREAMS))
    descriptors += found
    request: ForkRequest = pickle.loads(_exactly(asker, int.from_bytes(size, "little")))
    return request


def _settle(request: ForkRequest, output: Sequence[int]) -> None:
    """The fork has the actor's output, folder and environment."""
    for descriptor, stream in zip(output, STREAMS, strict=True):
        os.dup2(descriptor, stream)
    os.chdir(request.folder)
    for variable in os.environ.keys() - request.environment.keys():
        del os.environ[variable]
    for variable, value in request.environment.items():
        if os.environ.get(variable) != value:  # no other: see `environment`
            os.environ[variable] = value


def _tell(asker: socket.socket, number: int) -> None:
    with suppress(OSError):  # it is gone
        asker.sendall(_bytes(number))


def _number(server: socket.socket) -> int:
    """The next that the server tells. OSError where it does not."""
    return int.from_bytes(_exactly(server, SIZE), "little", signed=True)


def _bytes(number: int) -> bytes:
    return number.to_bytes(SIZE, "little", signed=True)


def _exactly(connection: socket.socket, size: int) -> bytes:
    """ConnectionError where it ends before."""
    content = b""
    while len(content) < size:
        part = connection.recv(size - len(content))
        if not part:
            raise ConnectionError(f"found {len(content)} bytes, expected {size}")
        content += part
    return content


def main(descriptor: str, parent: str, at_once: str) -> None:
    """The fork server, which ends with the rollout service; and each engine that it forks."""
    end_with(int(parent))
    listener = socket.socket(fileno=int(descriptor))
    os.set_inheritable(listener.fileno(), False)
    if not int(at_once):
        select.select([listener], [], [])
    engine_process.load()
    request, connection = ForkLoop(listener).serve()
    engine_process.run(request.name, request.log, connection)


if __name__ == "__main__":
    main(*sys.argv[1:])
