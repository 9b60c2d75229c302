"""A real Chromium without a window, over its DevTools protocol."""

import base64
import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

DEADLINE_S = 30.0


class Page:
    """One tab."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._numbers = socket, itertools.count(1)
        self.errors: list[str] = []
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """What a method of the protocol answers; errors of scripts that come meanwhile are kept."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=DEADLINE_S))
            self._note(message)
            if message.get("id") == number:
                assert "error" not in message, message
                return dict(message["result"])

    def _note(self, message: dict[str, Any]) -> None:
        if message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(str(message["params"]["exceptionDetails"]))

    def open(self, address: str) -> None:
        """Opens an address, and forgets the errors of the one before."""
        self.errors.clear()
        self.call("Page.navigate", url=address)
        self.wait_for("document.readyState === 'complete'")

    def value(self, expression: str) -> Any:
        """What a JavaScript expression is."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait_for(self, expression: str, seconds: float = DEADLINE_S) -> float:
        """Waits until an expression is true; returns how long that took."""
        begun = time.monotonic()
        while not self.value(expression):
            assert time.monotonic() - begun < seconds, f"{expression} within {seconds} s"
            time.sleep(0.05)
        return time.monotonic() - begun

    def size(self, width: int, height: int, dark: bool = False) -> None:
        """As a window of this size shows it, in the system's light or dark style."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self, path: Path) -> None:
        """The whole page as a PNG."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def point(self, selector: str, across: float = 0.5) -> None:
        """Moves the mouse over an element, `across` of its width from its left."""
        script = (
            f"(e => (e.scrollIntoView(), e.getBoundingClientRect().toJSON()))(document.querySelector('{selector}'))"
        )
        box = self.value(script)
        at = {"x": box["x"] + across * box["width"], "y": box["y"] + box["height"] / 2}
        self.call("Input.dispatchMouseEvent", type="mouseMoved", **at)


@contextmanager
def chromium(folder: Path) -> Iterator[Page]:
    """A tab of a browser of its own; skips where there is none."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs Chromium (Debian's package chromium)")
    flags = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--remote-debugging-port=0",
        f"--user-data-dir={folder}",
    ]
    process = subprocess.Popen([program, *flags, "about:blank"], stderr=subprocess.DEVNULL)
    try:
        with connect(_address(folder), proxy=None, max_size=None) as socket:
            yield Page(socket)
    finally:
        process.terminate()
        process.wait(DEADLINE_S)


def _address(folder: Path) -> str:
    """Where the browser's first tab answers."""
    end, found = time.monotonic() + DEADLINE_S, folder / "DevToolsActivePort"
    while not found.is_file() or not found.read_text().strip():
        assert time.monotonic() < end, "the browser did not start"
        time.sleep(0.05)
    port = found.read_text().splitlines()[0]
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while not (tabs := json.load(opener.open(f"http://127.0.0.1:{port}/json/list", timeout=DEADLINE_S))):
        assert time.monotonic() < end, "the browser has no tab"
    return str(next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page"))
