"""The engine of `probe` and `gap`, in a command's own process."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from cluster.commands.one_engine import _with_a_share, one_engine
from cluster.sizing.claims import PREFIX, Look
from rollout.config import EngineConfig
from tests.cards import card

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


def test_an_engine_of_a_command_is_refused_a_card_that_another_run_has_claimed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """All of it, and nothing is taken yet: the driver says that it is free. Nothing is claimed then."""
    monkeypatch.setattr("cluster.sizing.claims.FOLDER", tmp_path)
    monkeypatch.setattr("cluster.sizing.cards.find_cards", lambda: [card(80)])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with Look() as look:
        (found,) = look.left([card(80)])
        look.claim({found: found.free})
    with pytest.raises(ValueError, match=rf"GPU 0 .*found 0\.0 of 80\.0 GiB free, held by process {os.getpid()}; exp"):
        _with_a_share(EngineConfig())
    assert len(list(tmp_path.glob(f"{PREFIX}*"))) == 1
