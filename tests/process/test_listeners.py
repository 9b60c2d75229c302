"""The watch on a run's sockets and the stranger who asks them, which tests of the listeners stand on."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import grpc
import pytest

from tests import strangers
from tests.listeners import OF_A_WORKER, WORKER, Listener, Watch, _name, family, unexpected
from tests.strangers import CALLS, GONE, METRICS, SILENCE, TOKEN, UNREACHED, asks_for

LOOPBACK = ("127.0.0.1", 0)


class Exiting:
    """A process with a title of its own, which Linux forgets while it exits, its sockets still open."""

    pid = os.getpid()

    def __init__(self) -> None:
        self._titles = [["VLLM::EngineCore"], []]

    def cmdline(self) -> list[str]:
        return self._titles.pop(0)

    def name(self) -> str:
        return "VLLM::EngineCor"  # Linux keeps 15 characters


def test_a_process_that_exits_keeps_the_name_that_it_had() -> None:
    process: Any = Exiting()
    watch = Watch()
    with socket.create_server(LOOPBACK):
        watch.look([process])
        watch.look([process])
    assert set(watch.found()) == {Listener("VLLM::EngineCore", os.getpid(), "loopback", "")}


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["ray::EngineActor.start"], "ray::EngineActor"),
        (["ray::NewActor.work"], "ray::NewActor"),
        (["ray::IDLE"], WORKER),
        (["/usr/bin/python3", "-u", "/ray/_private/workers/default_worker.py", "--x"], WORKER),
        (["/bin/python", "/bin/edge-opd", "run"], "edge-opd"),
        (["/ray/gcs_server", "--x"], "gcs_server"),
    ],
)
def test_a_process_is_called_by_its_title(words: list[str], name: str) -> None:
    assert _name(words) == name


EXPECTED = {"server": {("loopback", TOKEN): (1, 1), ("loopback", SILENCE): (0, 2)}}


@pytest.mark.parametrize(
    ("found", "lines"),
    [
        ([("server", 1, TOKEN)], []),
        ([("server", 1, TOKEN), ("server", 2, TOKEN), ("server", 1, SILENCE), ("server", 1, SILENCE)], []),
        ([("server", 1, TOKEN), ("server", 1, TOKEN)], [("server (1)", 2, TOKEN)]),
        ([("server", 1, SILENCE)], [("server (1)", 0, TOKEN)]),
        ([("server", 1, TOKEN), ("server", 1, METRICS)], [("server (1)", 1, METRICS)]),
        ([("ray::NewActor", 3, TOKEN)], [("ray::NewActor (3)", 1, TOKEN)]),
    ],
)
def test_one_socket_more_or_less_is_unexpected(
    found: list[tuple[str, int, str]], lines: list[tuple[str, int, str]]
) -> None:
    said = unexpected([Listener(name, pid, "loopback", asks) for name, pid, asks in found], EXPECTED)
    assert [line.partition(", expected")[0] for line in said] == [
        f"{name}: found {number} sockets for loopback that ask for {asks}" for name, number, asks in lines
    ]


SERVER = """
import socket
first = socket.create_server(("127.0.0.1", 0))
input(print(flush=True) or "")
second = socket.create_server(("127.0.0.1", 0))
input(print(flush=True) or "")
"""


def test_another_port_of_a_known_process_is_found() -> None:
    watch, expected = Watch(), {"server": {("loopback", ""): (1, 1)}}
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(["server", "-c", SERVER], executable=sys.executable, **pipes) as started:
        assert started.stdin is not None and started.stdout is not None
        started.stdout.readline()
        watch.look(family(started.pid))
        assert unexpected(watch.found(), expected) == []
        print(file=started.stdin, flush=True)
        started.stdout.readline()
        watch.look(family(started.pid))
        started.kill()
    assert len(unexpected(watch.found(), expected)) == 1


def port_of(server: socket.socket) -> int:
    return int(server.getsockname()[1])


@contextmanager
def answering(status: int, body: bytes) -> Iterator[int]:
    """A web server with one answer."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(LOOPBACK, Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "body", "asks"),
    [
        (401, b"no token", TOKEN),
        (200, b"# HELP up\nup 1\n", METRICS),
        (200, b"<html>", "it answers b'HTTP/1.1 200 OK"),
        (403, b"", "it answers b'HTTP/1.1 403 Forbidden"),
    ],
)
def test_a_stranger_tells_a_web_server_by_its_answer(status: int, body: bytes, asks: str) -> None:
    with answering(status, body) as port:
        assert asks_for("127.0.0.1", port).startswith(asks)


class Interceptor(grpc.ServerInterceptor):  # type: ignore[misc]
    """Asks for a token, but not of who calls `opened`."""

    def __init__(self, opened: str) -> None:
        self._opened = opened

    def intercept_service(self, carry_on: Callable[[Any], Any], call: Any) -> Any:
        code = grpc.StatusCode.UNAUTHENTICATED

        def answer(_: bytes, context: Any) -> bytes:
            return b"" if call.method == self._opened else context.abort(code, "no token")

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.mark.parametrize(
    ("opened", "asks"), [("", TOKEN), (f"/{CALLS[-1]}", "gRPC that answers ['OK', 'UNAUTHENTICATED']")]
)
def test_a_stranger_tells_a_service_that_asks_for_a_token(opened: str, asks: str) -> None:
    server = grpc.server(ThreadPoolExecutor(2), interceptors=[Interceptor(opened)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        assert asks_for("127.0.0.1", port) == asks
    finally:
        server.stop(None)


@pytest.mark.parametrize(("answered", "asks"), [(0, GONE), (3, TOKEN)])
def test_what_ends_amid_the_calls_is_taken_for_what_it_said(
    answered: int, asks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a worker of Ray's does that is idle; what refuses calls and listens on is told."""
    call, calls = strangers.call_without_token, list[str]()
    server = grpc.server(ThreadPoolExecutor(2), interceptors=[Interceptor("")])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()

    def ending(address: str, port: int, method: str) -> str:
        calls.append(method)
        if len(calls) == answered + 1:
            server.stop(None).wait()
        return call(address, port, method)

    monkeypatch.setattr(strangers, "call_without_token", ending)
    assert asks_for("127.0.0.1", port) == asks
    monkeypatch.setattr(strangers, "call_without_token", lambda *_: "UNAVAILABLE")
    monkeypatch.setattr(strangers, "_said", lambda *_: strangers.HTTP2)
    with socket.create_server(LOOPBACK) as still:
        assert asks_for("127.0.0.1", port_of(still)) == "gRPC that answers ['UNAVAILABLE']"


def test_a_service_without_any_of_rays_calls_is_not_taken_for_one_that_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strangers, "SERVICES_S", 1.0)
    server = grpc.server(ThreadPoolExecutor(2))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        assert asks_for("127.0.0.1", port) == "gRPC that answers []"
    finally:
        server.stop(None)


def test_who_closes_or_is_out_of_reach_says_nothing() -> None:
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(LOOPBACK))
        pool = stack.enter_context(ThreadPoolExecutor(1))
        asked = pool.submit(asks_for, "127.0.0.1", port_of(server))
        visitor, _ = server.accept()
        assert re.match(rb"GET /metrics HTTP/1.1\r\n", visitor.recv(100))
        visitor.close()
        assert asked.result(timeout=120) == SILENCE
    assert asks_for("", 1) == UNREACHED


def closes_at_once(stack: ExitStack) -> Future[str]:
    """What a stranger finds whose connection closes together with the socket."""
    server = stack.enter_context(socket.create_server(LOOPBACK))
    asked = stack.enter_context(ThreadPoolExecutor(1)).submit(asks_for, "127.0.0.1", port_of(server))
    visitor, _ = server.accept()
    server.close()
    visitor.close()
    return asked


def test_what_is_gone_before_it_answers_is_told_from_what_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strangers, "SILENT_S", 600.0)
    with ExitStack() as stack:
        assert closes_at_once(stack).result(timeout=120) == GONE
    monkeypatch.setattr(strangers, "SILENT_S", 0.0)  # it was silent for as long as that
    with ExitStack() as stack:
        assert closes_at_once(stack).result(timeout=120) == SILENCE


@pytest.mark.parametrize(("title", "asks"), [("ray::IDLE", GONE), ("ray::EngineActor", SILENCE)])
def test_only_an_idle_worker_may_be_gone(title: str, asks: str) -> None:
    process: Any = Exiting()
    process._titles = [[title]]
    watch = Watch(lambda address, port: GONE)
    with socket.create_server(LOOPBACK):
        watch.look([process])
    assert {one.asks for one in watch.found()} == {asks}
    kinds = {name: {("loopback", asks): number for asks, number in OF_A_WORKER.items()} for name in (WORKER,)}
    assert not unexpected(watch.found(), kinds) if asks == GONE else unexpected(watch.found(), kinds)
