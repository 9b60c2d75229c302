"""A real Prometheus and its tools, for the tests that ask one."""

import json
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.runs import free_port

DEADLINE_S = 120.0


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name} (Debian's package prometheus)")
    return found


def promtool(*arguments: str, cwd: Path | None = None) -> str:
    """What it prints; AssertionError when it refuses."""
    done = subprocess.run([tool("promtool"), *arguments], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def fetched(address: str) -> bytes:
    """Of this machine, by no proxy."""
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address, timeout=DEADLINE_S) as answer:
        return bytes(answer.read())


class Prometheus:
    """A server at a port of this machine."""

    def __init__(self, port: int) -> None:
        self._address = f"http://127.0.0.1:{port}"

    def ask(self, path: str, **query: Any) -> Any:
        return fetched(f"{self._address}{path}?{urllib.parse.urlencode(query)}")

    def result(self, path: str, **query: Any) -> Any:
        answer = json.loads(self.ask(f"/api/v1/{path}", **query))
        assert answer["status"] == "success", answer
        return answer["data"]

    def points(self, expression: str, begin: float, end: float, step: float) -> list[float]:
        """Of all series, from the beginning to the end."""
        data = self.result("query_range", query=expression, start=begin, end=end, step=step)
        return [float(value) for one in data["result"] for _, value in one["values"]]

    def now(self, expression: str) -> list[float]:
        return [float(one["value"][1]) for one in self.result("query", query=expression)["result"]]


@contextmanager
def serving(folder: Path, config: str = "", *flags: str) -> Iterator[Prometheus]:
    """A Prometheus with that configuration, and its data in `folder`/data."""
    (folder / "prometheus.yml").write_text(config)
    command = [
        tool("prometheus"), f"--storage.tsdb.path={folder / 'data'}", f"--config.file={folder / 'prometheus.yml'}",
        "--log.level=error", *flags,
    ]  # fmt: skip
    end = time.monotonic() + DEADLINE_S
    while True:
        port = free_port()
        process, server = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"]), Prometheus(port)
        try:
            if _is_ready(server, process, end):
                yield server
                return
        finally:
            process.terminate()
            process.wait(DEADLINE_S)


def _is_ready(server: Prometheus, process: "subprocess.Popen[bytes]", end: float) -> bool:
    """Once it answers; False where it has ended, as one does whose port somebody has taken meanwhile."""
    while process.poll() is None:
        with suppress(OSError):
            server.ask("/-/ready")
            return True
        assert time.monotonic() < end, "Prometheus did not start"
        time.sleep(0.1)
    assert time.monotonic() < end, f"Prometheus ended with {process.returncode}"
    time.sleep(0.1)
    return False
