"""How long Ray's head may be silent. Of a real Ray: tests/engine/test_head.py."""

import errno
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from socketserver import BaseRequestHandler, ThreadingTCPServer
from types import SimpleNamespace

import pytest

from cluster.fleet import head
from cluster.fleet.head import watched_head
from tests.s3 import unreachable

PATIENCE = [(None, "", 10.0), (None, "10.0.0.1:6379", 40.0), ("6", "", 4.0), ("300", "x", 200.0)]


@pytest.mark.parametrize(("rays", "address", "seconds"), PATIENCE)
def test_a_head_has_less_time_than_ray_gives_it(
    monkeypatch: pytest.MonkeyPatch, rays: str | None, address: str, seconds: float
) -> None:
    for name, value in ((head.TOLD, rays), ("RAY_ADDRESS", address)):
        monkeypatch.setenv(name, value or "")
        if not value:
            monkeypatch.delenv(name)
    assert head.patience_s() == seconds


def set_times(monkeypatch: pytest.MonkeyPatch, rays: str) -> None:
    """A look every tenth of a second, at the head of a run's own Ray, which has this patience by its variable."""
    monkeypatch.setattr(head, "LOOK_S", 0.1)
    monkeypatch.setenv(head.TOLD, rays)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


class Told:
    """Who is told that the head is gone, and when."""

    def __init__(self) -> None:
        self.lines, self.times, self._is_told = list[str](), list[float](), threading.Event()

    def __call__(self, line: str) -> None:
        self.lines.append(line)
        self.times.append(time.monotonic())
        self._is_told.set()

    def wait(self) -> None:
        """Until it is told, and whoever watches has ended: it tells nothing again."""
        assert self._is_told.wait(60)
        for thread in threading.enumerate():
            if thread.name == "head":
                thread.join(60)
                assert not thread.is_alive()


def wait_for(looks: list[object], number: int) -> None:
    end = time.monotonic() + 60
    while len(looks) < number:
        assert time.monotonic() < end
        time.sleep(0.01)


@contextmanager
def answering() -> Iterator[str]:
    """A server's address; it begins every connection as one of gRPC does."""

    class Handler(BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(len(head.OPENING))
            self.request.sendall(head.OPENING[-9:])

    with ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_head_that_answers_is_waited_for_and_one_that_is_gone_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    set_times(monkeypatch, "0.75")
    told, looks, answers = Told(), list[object](), head.answers

    def looked(address: str) -> bool | None:
        looks.append(None)
        return answers(address)

    monkeypatch.setattr(head, "answers", looked)
    with answering() as address, watched_head(told, address):
        wait_for(looks, 10)  # three without an answer are as long as it waits
    assert told.lines == []
    with unreachable("closed") as port, watched_head(told, f"127.0.0.1:{port}"):
        told.wait()
    assert told.lines == [
        f"Ray's head (gcs_server) at 127.0.0.1:{port} does not answer for 0.5 s: it died or was killed"
    ]


def test_a_head_whose_connections_the_system_takes_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a process that was stopped. Under TLS nothing more can be told."""
    set_times(monkeypatch, "0.75")
    monkeypatch.setattr(head, "HANGS_S", 1.0)  # more than one has that refuses
    monkeypatch.delenv("RAY_USE_TLS", raising=False)
    told, begun = Told(), time.monotonic()
    with unreachable("silent") as port:
        address = f"127.0.0.1:{port}"
        with watched_head(told, address):
            told.wait()
        assert told.lines == [f"Ray's head (gcs_server) at {address} does not answer for 1 s: it hangs or was stopped"]
        assert told.times[0] - begun >= 1.0
        monkeypatch.setenv("RAY_USE_TLS", "1")
        assert head.answers(address)


def test_a_host_that_answers_nothing_has_no_more_time_than_one_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look waits for an answer there, as long as between two looks."""
    looks = list[object]()

    def unanswered(*_: object, timeout: float) -> None:
        looks.append(None)
        time.sleep(timeout)
        raise TimeoutError

    set_times(monkeypatch, "1.5")
    monkeypatch.setattr(head.socket, "create_connection", unanswered)
    told, begun = Told(), time.monotonic()
    with watched_head(told, "10.0.0.1:1"):
        told.wait()
    assert len(looks) in (5, 6) and told.times[0] - begun >= 1.0


def test_what_this_host_lacks_says_nothing_of_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(*_: object, timeout: float) -> None:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(head.socket, "create_connection", without)
    assert head.answers("127.0.0.1:1")


def test_a_head_that_comes_again_within_its_time_is_not_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is the time counted that it was silent before. The clock is the looks'."""
    set_times(monkeypatch, "1.5")
    told, looks = Told(), list[object]()
    found = [False] * 4 + [True] + [False] * 4 + [True] * 3  # the fifth would be a second's

    def answers(_: str) -> bool:
        looks.append(None)
        return found[min(len(looks), len(found)) - 1]

    monkeypatch.setattr(head, "answers", answers)
    monkeypatch.setattr(head, "time", SimpleNamespace(monotonic=lambda: 0.2 * len(looks)))
    with watched_head(told, "127.0.0.1:1"):
        wait_for(looks, len(found))
    assert told.lines == []
