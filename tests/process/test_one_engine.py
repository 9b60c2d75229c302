"""The engine of `probe` and `gap`, in a command's own process."""

import os
import sys
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from cluster.commands.one_engine import one_engine
from rollout.config import EngineConfig

NAME = "GLOO_SOCKET_IFNAME"


@pytest.mark.parametrize("own", ["", "eth7"])
def test_an_engine_of_a_command_is_to_listen_on_loopback_alone(monkeypatch: pytest.MonkeyPatch, own: str) -> None:
    """As an actor's is, before it starts; a user's own choice stays."""
    started = list[str]()

    def engine(*arguments: Any) -> Any:
        started.append(os.environ[NAME])
        return SimpleNamespace(shutdown=lambda: None)

    monkeypatch.setenv(NAME, own)  # which is taken back afterwards
    if not own:
        monkeypatch.delenv(NAME)
    monkeypatch.setitem(sys.modules, "rollout.engine", SimpleNamespace(Engine=engine))
    with one_engine("model", EngineConfig(), "engine"):
        pass
    (interface,) = started
    addresses = {found.address for found in psutil.net_if_addrs().get(interface, [])}
    assert interface == own or "127.0.0.1" in addresses
