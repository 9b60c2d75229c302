"""The watch on a run's sockets, which tests of the listeners stand on."""

import os
import socket
from typing import Any

from tests.listeners import Listener, Watch


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
    with socket.create_server(("127.0.0.1", 0)):
        watch.look([process])
        watch.look([process])
    assert watch.found() == {Listener("VLLM::EngineCore", "loopback")}
