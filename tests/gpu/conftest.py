"""What only a GPU can prove. Each test is skipped without one, with the reason; what they found goes to one JSON file,
runs/gpu.json or GPU_RESULTS, which is written again after each test: a session that is cut leaves what it has.
GPU_TEST_S bounds the seconds of a test."""

import json
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.sizing.cards import Card, own_cards
from tests.bench.__main__ import versions
from tests.bench.figures import Figure

# A reference's forwards: where other tests' processes are at work, a thread for each core takes minutes.
torch.set_num_threads(min(4, torch.get_num_threads()))
REASON = "needs an NVIDIA GPU, and nvidia-smi finds none here"
# A machine may be there for minutes: first what has run least.
ORDER = ("test_learner", "test_runs", "test_pushes", "test_engines")
# Of one test with its fixtures, so that one which hangs leaves time for others.
LONGEST_S = float(os.environ.get("GPU_TEST_S", "420"))
TELL = Callable[[str, float, str], None]


class Results:
    """Of one session, and their file."""

    def __init__(self) -> None:
        self.target = Path(os.environ.get("GPU_RESULTS", "runs/gpu.json"))
        self.figures, self.tests, self.left = list[dict[str, Any]](), dict[str, dict[str, Any]](), list[str]()
        self._begun, self._about = time.time(), dict[str, Any]()

    def begin(self, left: list[str]) -> None:
        """Before the first of the tests that are left, of whose seconds nothing is to be taken."""
        cards = own_cards()
        named = Counter(card.name for card in cards).items()  # torch would take memory of each to name it
        machine = ", ".join(f"{count} x {name}" for name, count in named)
        self._about = {"machine": machine, "cards": [asdict(card) for card in cards], "versions": versions()}
        self.left = left

    def write(self, whole: bool = False) -> None:
        """In the place of what was there. whole: the session has come to its end."""
        about = self._about | {"seconds": round(time.time() - self._begun), "whole": whole, "left": self.left}
        found = about | {"tests": self.tests, "figures": self.figures}
        self.target.parent.mkdir(parents=True, exist_ok=True)
        beside = self.target.with_name(f".{self.target.name}")
        beside.write_text(json.dumps(found, indent=1) + "\n")
        beside.replace(self.target)


RESULTS = pytest.StashKey[Results]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RESULTS] = Results()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In the places that those of this folder have, in `ORDER`."""
    mine = [item for item in items if is_ours(item.nodeid)]
    places = [place for place, item in enumerate(items) if is_ours(item.nodeid)]
    ranks = {name: rank for rank, name in enumerate(ORDER)}
    mine.sort(key=lambda item: ranks.get(item.path.stem, len(ORDER)))
    for place, item in zip(places, mine, strict=True):
        items[place] = item
        item.add_marker(pytest.mark.timeout(LONGEST_S), append=False)
    if mine:
        config.stash[RESULTS].begin([item.nodeid for item in mine])


def is_ours(nodeid: str) -> bool:
    return "tests/gpu/" in nodeid


@pytest.fixture(scope="session")
def cards() -> list[Card]:
    """The GPUs that this process may use; a test that asks is skipped where there is none."""
    found = own_cards()
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
    results = request.config.stash[RESULTS]

    def add(name: str, value: float, target: str = "") -> None:
        figure = Figure(name, value, target)
        figure.say()
        results.figures.append(asdict(figure) | {"verdict": figure.verdict, "test": request.node.name})
        results.write()

    return add


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """What a test of this folder came to, with why it failed or was skipped."""
    report = yield
    if is_ours(report.nodeid) and (report.when == "call" or report.outcome != "passed"):
        results = item.config.stash[RESULTS]
        skipped = report.skipped and isinstance(report.longrepr, tuple)
        why = str(report.longrepr[2]) if skipped else report.longreprtext[-3000:] if report.failed else ""
        results.tests[report.nodeid] = {"outcome": report.outcome, "seconds": round(report.duration, 1), "why": why}
        results.left = [nodeid for nodeid in results.left if nodeid != report.nodeid]
        results.write()
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    results = session.config.stash[RESULTS]
    if results.tests:
        results.write(whole=not results.left)
