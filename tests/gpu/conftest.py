"""What only a GPU can prove. Each test is skipped without one, with the reason; what they found goes to one JSON file,
runs/gpu.json or GPU_RESULTS."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.machine import machine_name
from cluster.sizing.cards import Card, find_cards
from tests.bench.__main__ import versions
from tests.bench.figures import Figure

# A reference's forwards: where other tests' processes are at work, a thread for each core takes minutes.
torch.set_num_threads(min(4, torch.get_num_threads()))
REASON = "needs an NVIDIA GPU, and nvidia-smi finds none here"
TELL = Callable[[str, float, str], None]
_figures, _outcomes, _begun = list[dict[str, Any]](), dict[str, dict[str, Any]](), time.time()


@pytest.fixture(scope="session")
def cards() -> list[Card]:
    """The machine's GPUs; a test that asks is skipped where there is none."""
    found = find_cards()
    if not found:
        pytest.skip(REASON)
    return found


@pytest.fixture(autouse=True)
def _on_a_gpu(cards: list[Card]) -> None:
    """Every test here needs one."""


@pytest.fixture(scope="session")
def two_cards(cards: list[Card]) -> list[Card]:
    """Skips with the number that was found."""
    if len(cards) < 2:
        pytest.skip(f"needs two GPUs, and this machine has {len(cards)}")
    return cards


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> TELL:
    """Adds a figure to the results: its name, its value, and a target such as "<= 0.5"."""

    def add(name: str, value: float, target: str = "") -> None:
        figure = Figure(name, value, target)
        figure.say()
        _figures.append(asdict(figure) | {"verdict": figure.verdict, "test": request.node.name})

    return add


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if "tests/gpu/" in report.nodeid and (report.when == "call" or report.outcome != "passed"):
        why = str(report.longrepr[2]) if report.skipped and isinstance(report.longrepr, tuple) else ""
        _outcomes[report.nodeid] = {"outcome": report.outcome, "seconds": round(report.duration, 1), "why": why}


def pytest_sessionfinish() -> None:
    if not _outcomes:
        return
    target = Path(os.environ.get("GPU_RESULTS", "runs/gpu.json"))
    target.parent.mkdir(parents=True, exist_ok=True)
    about = {"machine": machine_name(), "cards": [asdict(card) for card in find_cards()], "versions": versions()}
    seconds = round(time.time() - _begun)
    target.write_text(
        json.dumps(about | {"seconds": seconds, "tests": _outcomes, "figures": _figures}, indent=1) + "\n"
    )
