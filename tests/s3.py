"""A real S3 server on loopback, and a door before it that writes down what it is asked, and may refuse or garble it."""

import http.client
import os
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from pyarrow import fs as pafs

ANSWER_S = 300.0
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "AKEXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "s3cr3t/of+nobody",
    "AWS_EC2_METADATA_DISABLED": "true",  # without credentials the client would look for them on the network
}


MOTO = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@contextmanager
def s3_server(**environment: str) -> Iterator[int]:
    """A moto server in its own process, behind a door; yields the door's port."""
    pipe, env = subprocess.PIPE, {**os.environ, **environment}
    command = [sys.executable, "-c", MOTO]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env=env) as server:
        try:
            assert server.stdout is not None
            port = server.stdout.readline()
            assert port, f"the S3 server ended with {server.wait()}"
            with at(Door(int(port))) as front:
                yield front
        finally:
            server.kill()


def options(port: int) -> str:
    return f"?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"


def new_bucket(port: int) -> str:
    """The name of an empty bucket."""
    bucket = f"b-{uuid.uuid4().hex}"
    maker, _ = pafs.FileSystem.from_uri(f"s3://{bucket}{options(port)}&allow_bucket_creation=true")
    maker.create_dir(bucket)
    return bucket


def keys(port: int, bucket: str) -> list[str]:
    """Every key of the bucket, also of objects that pyarrow takes for folders."""
    filesystem, _ = pafs.FileSystem.from_uri(f"s3://{bucket}{options(port)}")
    found = filesystem.get_file_info(pafs.FileSelector(bucket, recursive=True))
    return sorted(info.path.partition("/")[2] + ("" if info.is_file else "/") for info in found)


@contextmanager
def unreachable(kind: str) -> Iterator[int]:
    """A port where nobody listens, or where a server takes connections and never answers."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if kind == "silent":
            silent.listen(64)
        yield int(silent.getsockname()[1])


@dataclass(frozen=True)
class Asked:
    """One request at the door."""

    method: str
    path: str  # with its query
    headers: dict[str, str]  # names in lower case


Refuses = Callable[[Asked], bool]
Answer = tuple[int, list[tuple[str, str]], bytes]  # status, headers, content
DENIED = b"<Error><Code>AccessDenied</Code><Message>not yours</Message></Error>"
BUSY = b"<Error><Code>SlowDown</Code><Message>later</Message></Error>"


@dataclass
class Door:
    """A proxy to the server on port `behind`; what it is asked is kept in `asked`.

    refuses: answers 403. is_busy: answers 503. keeps_frame: passes an upload's framed chunks on as content, as some
    stores do. A client asks again what is not answered within 3 s, and fails where an upload has been completed
    meanwhile: what it repeats gets the first answer.
    """

    behind: int
    refuses: Refuses = lambda asked: False
    is_busy: Refuses = lambda asked: False
    keeps_frame: bool = False
    asked: list[Asked] = field(default_factory=list)
    _answers: "dict[str, Future[Answer]]" = field(default_factory=dict)

    def answer(self, asked: Asked, body: bytes) -> Answer:
        for is_so, status, content in ((self.refuses, 403, DENIED), (self.is_busy, 503, BUSY)):
            if is_so(asked):
                self.asked.append(asked)
                return status, [("content-type", "application/xml"), ("content-length", str(len(content)))], content
        own: Future[Answer] = Future()
        first = self._answers.setdefault(asked.headers.get("amz-sdk-invocation-id", uuid.uuid4().hex), own)
        if first is own:
            self.asked.append(asked)
            own.set_result(self._passed_on(asked, body))
        return first.result(ANSWER_S)

    def _passed_on(self, asked: Asked, body: bytes) -> Answer:
        dropped = {"transfer-encoding", "content-length", "expect", "connection"}
        if self.keeps_frame:
            dropped |= {name for name in asked.headers if name in ("content-encoding", "x-amz-content-sha256")}
            dropped |= {
                name for name in asked.headers if name.startswith(("x-amz-trailer", "x-amz-decoded", "x-amz-sdk"))
            }
        passed = {name: value for name, value in asked.headers.items() if name not in dropped}
        server = http.client.HTTPConnection("127.0.0.1", self.behind, timeout=ANSWER_S)
        server.request(asked.method, asked.path, body, passed)
        response = server.getresponse()
        content = response.read()
        kept = [(name, value) for name, value in response.getheaders() if name.lower() not in DROPPED_ANSWERS]
        length = response.getheader("content-length") if asked.method == "HEAD" else None
        server.close()
        return response.status, [*kept, ("content-length", length or str(len(content)))], content


DROPPED_ANSWERS = ("transfer-encoding", "content-length", "connection", "date", "server")


@contextmanager
def at(door: Door) -> Iterator[int]:
    """The port of the door."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def _body(self) -> bytes:
            if "chunked" not in self.headers.get("transfer-encoding", ""):
                return self.rfile.read(int(self.headers.get("content-length", 0)))
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def _pass(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, answered, content = door.answer(Asked(self.command, self.path, headers), self._body())
            self.send_response(status)
            for name, value in answered:
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
