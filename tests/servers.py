"""Servers of tests: one that gives fixed answers, a model hub, and vLLM's own."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from rollout.cores import num_cores
from tests.runs import free_port

START_S = 500.0  # vLLM imports and loads


@contextmanager
def answering(answer: Callable[[str], tuple[int, bytes, str | dict[str, str]]]) -> Iterator[str]:
    """Its host and port. answer: from a path to status, content and the content's type or headers, however it is
    asked."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers["content-length"] or 0))
            status, content, told = answer(self.path)
            self.send_response(status)
            headers = told if isinstance(told, dict) else {"content-type": told}
            for name, value in ({"content-length": str(len(content))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_POST = do_HEAD = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@dataclass
class Hub:
    """What a hub holds of one model. commits: the files of each. main: that of its branch. others: those of other
    branches and tags. cut: a file whose content breaks off. asked: every path so far."""

    name: str
    commits: dict[str, dict[str, bytes]]
    main: str
    others: dict[str, str] = field(default_factory=dict)
    cut: str = ""
    asked: list[str] = field(default_factory=list)

    def answer(self, path: str) -> tuple[int, bytes, dict[str, str]]:
        self.asked.append(path)
        at = urlsplit(path).path
        for pattern, answer in (
            (rf"/{self.name}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", self._file),
            (rf"/api/models/{self.name}/tree/(?P<revision>[^/]+)", self._tree),
            (rf"/api/models/{self.name}/revision/(?P<revision>[^/]+)", self._info),
        ):
            if found := re.fullmatch(pattern, at):
                revision = unquote(found["revision"])
                commit = {"main": self.main, **self.others}.get(revision, revision)
                if commit not in self.commits:
                    return 404, b"", {"x-error-code": "RevisionNotFound"}
                return answer(commit, found.groupdict())
        return 404, b"", {"x-error-code": "RepoNotFound"}

    def _file(self, commit: str, found: dict[str, str]) -> tuple[int, bytes, dict[str, str]]:
        content = self.commits[commit].get(found["file"])
        if content is None:
            return 404, b"", {"x-error-code": "EntryNotFound", "x-repo-commit": commit}
        told = {"content-length": str(len(content) + 9)} if found["file"] == self.cut else {}
        return 200, content, told | {"x-repo-commit": commit, "etag": f'"{hashlib.sha1(content).hexdigest()}"'}

    def _info(self, commit: str, _: dict[str, str]) -> tuple[int, bytes, dict[str, str]]:
        files = [{"rfilename": name} for name in self.commits[commit]]
        info = {"id": self.name, "sha": commit, "siblings": files}
        return 200, json.dumps(info).encode(), {"content-type": "application/json"}

    def _tree(self, commit: str, _: dict[str, str]) -> tuple[int, bytes, dict[str, str]]:
        files = [
            {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for name, content in self.commits[commit].items()
        ]
        return 200, json.dumps(files).encode(), {"content-type": "application/json"}


@contextmanager
def vllm_server(log: Path, *command: str) -> Iterator[str]:
    """The base URL of a vLLM server on the cores of this machine: `python -m` with these arguments."""
    port = free_port()
    own = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(num_cores()), "OMP_WAIT_POLICY": "PASSIVE"}
    own |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    arguments = [sys.executable, "-m", *command, "--enforce-eager", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as out:
        run = subprocess.Popen(arguments, stdout=out, stderr=subprocess.STDOUT, env=os.environ | own)
    try:
        _wait_until_healthy(f"http://127.0.0.1:{port}/health", run, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        run.terminate()
        run.wait(timeout=120)


def _wait_until_healthy(url: str, run: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end and run.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"{url}: no answer within {START_S:g} s (exit {run.poll()}): {log.read_text()[-3000:]}")
