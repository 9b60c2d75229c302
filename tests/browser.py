"""A real Chromium without a window, over its DevTools protocol."""

import base64
import itertools
import json
import re
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

DEADLINE_S = 120.0


class Refused(AssertionError):
    """What the protocol answers in place of a result."""


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
                if "error" in message:
                    raise Refused(message)
                return dict(message["result"])

    def _note(self, message: dict[str, Any]) -> None:
        if message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(str(message["params"]["exceptionDetails"]))

    def open(self, address: str) -> None:
        """Opens an address, and forgets the errors of the one before."""
        self.errors.clear()
        self.value("window.isOld = true")  # the document before answers until the new one is there
        self.call("Page.navigate", url=address)
        self.wait_for("!window.isOld && document.readyState === 'complete'")

    def value(self, expression: str) -> Any:
        """What a JavaScript expression is."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait_for(self, expression: str, seconds: float = DEADLINE_S) -> None:
        """Waits until an expression is true."""
        end = time.monotonic() + seconds
        while not self._is(expression):
            assert time.monotonic() < end, f"{expression} within {seconds} s"
            time.sleep(0.05)

    def _is(self, expression: str) -> bool:
        """Amid a navigation nothing is."""
        try:
            return bool(self.value(expression))
        except Refused as error:
            if not re.search("navigated or closed|context", str(error)):
                raise
            return False

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
        with connect(
            _address(folder), proxy=None, max_size=None, open_timeout=DEADLINE_S, ping_interval=None
        ) as socket:
            yield Page(socket)
    finally:
        process.terminate()
        process.wait(DEADLINE_S)


def _address(folder: Path) -> str:
    """Where the browser's first tab answers."""
    end, found = time.monotonic() + DEADLINE_S, folder / "DevToolsActivePort"
    while not found.is_file() or "\n" not in found.read_text():
        assert time.monotonic() < end, "the browser did not start"
        time.sleep(0.05)
    port = found.read_text().splitlines()[0]
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        tabs = json.load(opener.open(f"http://127.0.0.1:{port}/json/list", timeout=DEADLINE_S))
        for tab in tabs:
            if tab["type"] == "page":
                return str(tab["webSocketDebuggerUrl"])
        assert time.monotonic() < end, "the browser has no tab"
        time.sleep(0.05)
