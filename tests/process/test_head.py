"""How long Ray's head may be silent. Of a real Ray: tests/engine/test_head.py."""

import errno
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from socketserver import BaseRequestHandler, ThreadingTCPServer

import pytest

from cluster.fleet import head
from cluster.fleet.head import watched_head

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


@contextmanager
def answering(port: int = 0) -> Iterator[str]:
    """A server's address; it begins every connection as one of gRPC does."""

    class Handler(BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(len(head.OPENING))
            self.request.sendall(head.OPENING[-9:])

    class Server(ThreadingTCPServer):
        allow_reuse_address = True

    with Server(("127.0.0.1", port), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_head_that_answers_is_waited_for_and_one_that_is_gone_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    set_times(monkeypatch, "0.75")
    said: list[str] = []
    with answering() as address, watched_head(said.append, address):
        time.sleep(1.0)
    assert said == []
    with watched_head(said.append, address):
        time.sleep(1.5)
    assert said == [f"Ray's head (gcs_server) at {address} does not answer for 0.5 s: it died or was killed"]


def test_a_head_whose_connections_the_system_takes_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a process that was stopped. Under TLS nothing more can be told."""
    set_times(monkeypatch, "0.75")
    monkeypatch.setattr(head, "HANGS_S", 1.0)
    monkeypatch.delenv("RAY_USE_TLS", raising=False)
    said: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        with watched_head(said.append, address):
            time.sleep(0.9)
            assert said == []  # it has more time than one that refuses
            time.sleep(0.9)
        assert said == [f"Ray's head (gcs_server) at {address} does not answer for 1 s: it hangs or was stopped"]
        monkeypatch.setenv("RAY_USE_TLS", "1")
        assert head.answers(address)


def test_a_host_that_answers_nothing_has_no_more_time_than_one_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look waits for an answer there, as long as between two looks."""

    def unanswered(*_: object, timeout: float) -> None:
        time.sleep(timeout)
        raise TimeoutError

    set_times(monkeypatch, "1.5")
    monkeypatch.setattr(head.socket, "create_connection", unanswered)
    said: list[float] = []
    begun = time.monotonic()
    with watched_head(lambda _: said.append(time.monotonic() - begun), "10.0.0.1:1"):
        time.sleep(1.6)
    assert len(said) == 1 and 1.0 <= said[0] < 1.5


def test_what_this_host_lacks_says_nothing_of_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(*_: object, timeout: float) -> None:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(head.socket, "create_connection", without)
    assert head.answers("127.0.0.1:1")


def test_a_head_that_comes_again_within_its_time_is_not_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    set_times(monkeypatch, "3")
    said: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with watched_head(said.append, f"127.0.0.1:{port}"):
        time.sleep(0.5)
        with answering(port):
            time.sleep(2.0)
    assert said == []
