"""Which sockets a run's processes listen on, seen from outside while it lasts."""

import os
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path

import psutil
from ray._private.ray_constants import DEFAULT_DASHBOARD_AGENT_LISTEN_PORT

from tests.strangers import GONE, SILENCE, TOKEN

Kinds = Mapping[tuple[str, str], tuple[int, int]]  # (reach, what it asks for): the least and the most sockets
EVERY_S = 0.2
WORKER = "ray::worker"  # one that waits for work
OF_A_WORKER = {TOKEN: (0, 1), GONE: (0, 1)}  # which may end while it is asked
TITLE = re.compile(r"ray::\w+|VLLM::\w+|ray-dashboard-\w+")
LISTENS = "0A"  # the state in /proc/net/tcp
OWN = re.compile(r"(\S+)\n\s*/32 host LOCAL")  # an address in /proc/net/fib_trie
SIDES = re.compile(r"^\s*\d+: ([0-9A-F]+):([0-9A-F]{4}) \S+ (\S\S) (?:\S+ +){5}(\d+)", re.MULTILINE)


@dataclass(frozen=True, order=True)
class Listener:
    """A socket that takes connections: whose it is, such as gcs_server or ray::EngineActor, from where they may come,
    and what it asks of who connects."""

    process: str
    pid: int
    reach: str  # "loopback", "everyone", or an address of the host's
    asks: str  # see `tests.strangers`; "" where nobody asked


class Watch:
    """Remembers every socket that the processes it is shown listen on. ask: is told an address and a port of each, and
    says what the socket asks for; the answer is waited for in a thread of its own."""

    def __init__(self, ask: Callable[[str, int], str] = lambda address, port: "") -> None:
        self._sockets: dict[str, tuple[int, str, Future[str]]] = {}  # by number: whose it is, from where, what it asks
        self._names: dict[int, str] = {}  # as they are called last: a process of Ray's gets its title as it runs
        self._ask, self._strangers = ask, ThreadPoolExecutor(100)

    def look(self, processes: Iterable[psutil.Process]) -> None:
        """A network's table is read once a look: it is the dear part, and processes mostly share one."""
        tables: dict[str, dict[str, tuple[str, int]]] = {}
        for process in processes:
            with suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError, PermissionError):
                if (words := process.cmdline()) or process.pid not in self._names:  # one that exits has none any more
                    self._names[process.pid] = _name(words or [process.name()])
                network = os.readlink(f"/proc/{process.pid}/ns/net")
                sockets = tables[network] = tables.get(network) or _sockets(process.pid)
                if new := sockets.keys() - self._sockets.keys():
                    for number in new & _held(process.pid):
                        reach, port = sockets[number]
                        asks = self._strangers.submit(self._ask, _address(process.pid, reach), port)
                        self._sockets[number] = process.pid, reach, asks

    def found(self) -> list[Listener]:
        """All that were there. An idle worker may end while it is asked; of all others what is gone said nothing."""
        found = [Listener(self._names[pid], pid, reach, asks.result()) for pid, reach, asks in self._sockets.values()]
        return [replace(one, asks=SILENCE) if one.asks == GONE and one.process != WORKER else one for one in found]


def unexpected(found: Iterable[Listener], expected: Mapping[str, Kinds]) -> list[str]:
    """A line for each process whose sockets are not those of its name in `expected`: from where, what they ask for and
    how many."""
    sockets: dict[tuple[str, int], Counter[tuple[str, str]]] = {}
    for one in found:
        sockets.setdefault((one.process, one.pid), Counter())[one.reach, one.asks] += 1
    return [
        f"{process} ({pid}): found {number} sockets for {reach} that ask for {asks}, expected {least} to {most}"
        for (process, pid), counted in sorted(sockets.items())
        for reach, asks in sorted(counted.keys() | expected.get(process, {}).keys())
        for number, (least, most) in [(counted[reach, asks], expected.get(process, {}).get((reach, asks), (0, 0)))]
        if not least <= number <= most
    ]


@contextmanager
def watched(processes: Callable[[], Iterable[psutil.Process]], ask: Callable[[str, int], str]) -> Iterator[Watch]:
    """Within it what `processes` gives is looked at all the time, and each socket asked."""
    watch, done = Watch(ask), threading.Event()

    def look() -> None:
        while not done.wait(EVERY_S):
            watch.look(processes())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield watch
    finally:
        done.set()
        thread.join()


def family(pid: int) -> list[psutil.Process]:
    """A process and all that it started."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def wait_for_the_agents_port() -> None:
    """Until nobody listens where Ray's dashboard agent will: it goes on without that socket otherwise, and one of a Ray
    that was killed has it for a minute (findings/ray-agents-outlive-a-killed-driver.sh). AssertionError after two."""
    end = time.monotonic() + 120
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", DEFAULT_DASHBOARD_AGENT_LISTEN_PORT)):
                return
        assert time.monotonic() < end, f"another Ray's agent listens on port {DEFAULT_DASHBOARD_AGENT_LISTEN_PORT}"
        time.sleep(1)


def _sockets(pid: int) -> dict[str, tuple[str, int]]:
    """(number: reach, port) of every socket that listens in the network of a process."""
    found = {}
    for table in ("tcp", "tcp6"):
        text = Path(f"/proc/{pid}/net/{table}").read_text()
        for address, port, state, number in SIDES.findall(text):
            if state == LISTENS:
                found[number] = _reach(address), int(port, 16)
    return found


def _reach(address: str) -> str:
    words = [bytes.fromhex(address[at : at + 8])[::-1] for at in range(0, len(address), 8)]
    found = ip_address(b"".join(words))
    found = getattr(found, "ipv4_mapped", None) or found
    return "loopback" if found.is_loopback else "everyone" if found.is_unspecified else str(found)


def _address(pid: int, reach: str) -> str:
    """Where such a socket of the process is connected to from here: at this host's loopback, or the address of its own
    network. "" where only its own host reaches it."""
    if reach not in ("loopback", "everyone"):
        return reach
    if os.readlink(f"/proc/{pid}/ns/net") == os.readlink("/proc/self/ns/net"):
        return "127.0.0.1"
    own = OWN.findall(Path(f"/proc/{pid}/net/fib_trie").read_text())
    return next(address for address in own if not address.startswith("127.")) if reach == "everyone" else ""


def _held(pid: int) -> set[str]:
    held = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            target = os.readlink(descriptor)
            if target.startswith("socket:["):
                held.add(target[8:-1])
    return held


def _name(words: list[str]) -> str:
    """Without arguments and numbers: ray::EngineActor of ray::EngineActor.start, monitor of python .../monitor.py."""
    if title := TITLE.match(words[0]):
        return WORKER if title[0].startswith("ray::IDLE") else title[0]
    if not Path(words[0]).name.startswith("python"):
        return Path(words[0]).name
    name = Path(next((word for word in words[1:] if not word.startswith("-")), "python")).name.removesuffix(".py")
    return WORKER if name in ("default_worker", "setup_worker") else name
