"""What `make test-gpu` leaves of a session that fails, and of one that is cut, with a card that is a stand-in."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cluster.sizing.cards import DEVICES
from tests.cards import smi_program
from tests.gpu.drive import kernels
from tests.runs import ROOT

TESTS = {
    "test_engines.py": """
import os, signal
from tests.gpu.conftest import *
def test_a_figure(tell):
    tell("tokens a second", 3.0, ">= 2")
def test_two(two_cards):
    pass
def test_cut():
    os.kill(os.getpid(), getattr(signal, os.environ["CUT"], 0))
def test_after():
    pass
""",
    "test_learner.py": """
def test_fails(cards):
    assert len(cards) == 3, "not enough"
def test_takes_too_long():
    import time
    time.sleep(float(os.environ["LONG"]))
import os
""",
}


def results(tmp_path: Path, **environment: str) -> dict[str, Any]:
    """Of a session of `TESTS`."""
    folder = tmp_path / "tests" / "gpu"
    folder.mkdir(parents=True)
    for name, text in TESTS.items():
        (folder / name).write_text(text)
    smi_program(tmp_path, 80, 79)
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    target = tmp_path / "results" / "gpu.json"
    own = {"PATH": path, "PYTHONPATH": str(ROOT), "GPU_RESULTS": str(target), "CUT": "none", "LONG": "0"} | environment
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.gpu.conftest", "."]
    limited = [*command, "-c", "/dev/null", "--rootdir", str(tmp_path)]
    env = {key: value for key, value in os.environ.items() if key != DEVICES} | own
    subprocess.run(limited, cwd=tmp_path, env=env, capture_output=True, timeout=120, check=False)
    found: dict[str, Any] = json.loads(target.read_text())
    assert [path.name for path in target.parent.iterdir()] == ["gpu.json"]
    return found


def outcomes(found: dict[str, Any]) -> dict[str, str]:
    return {name.rpartition("::")[2]: told["outcome"] for name, told in found["tests"].items()}


def test_a_session_in_which_tests_fail_leaves_every_result(tmp_path: Path) -> None:
    found = results(tmp_path)
    assert [*outcomes(found).items()] == [  # what has run least on a card comes first
        ("test_fails", "failed"), ("test_takes_too_long", "passed"), ("test_a_figure", "passed"),
        ("test_two", "skipped"), ("test_cut", "passed"), ("test_after", "passed"),
    ]  # fmt: skip
    assert found["whole"] and found["left"] == []
    why = {name.rpartition("::")[2]: told["why"] for name, told in found["tests"].items()}
    assert "not enough" in why["test_fails"] and "needs two GPUs, and this machine has 1" in why["test_two"]
    assert found["machine"] == "1 x NVIDIA H100 80GB HBM3" and found["cards"][0]["uuid"] == "GPU-0-uuid"
    (figure,) = found["figures"]
    assert (figure["name"], figure["verdict"], figure["test"]) == ("tokens a second", "met", "test_a_figure")


@pytest.mark.parametrize("signal", ["SIGKILL", "SIGTERM"])
def test_a_session_that_is_cut_leaves_what_it_has_and_says_what_is_left(tmp_path: Path, signal: str) -> None:
    found = results(tmp_path, CUT=signal)
    assert outcomes(found)["test_a_figure"] == "passed" and len(found["figures"]) == 1
    assert [name.rpartition("::")[2] for name in found["left"]] == ["test_cut", "test_after"] and not found["whole"]


def test_a_test_that_hangs_leaves_time_for_the_others(tmp_path: Path) -> None:
    found = results(tmp_path, LONG="600", GPU_TEST_S="20")
    assert outcomes(found)["test_takes_too_long"] == "failed" and outcomes(found)["test_after"] == "passed"
    assert found["whole"]


def test_a_gpus_time_is_that_of_its_kernels_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's profiler also lists the ranges that Python named, such as an optimizer's step, with the time of all that
    ran in each; its own sums leave them out."""
    cpu, cuda = torch.profiler.DeviceType.CPU, torch.profiler.DeviceType.CUDA
    listed = [
        SimpleNamespace(key=key, device_type=kind, is_user_annotation=named, self_device_time_total=1e6 * seconds)
        for key, kind, named, seconds in [
            ("norm", cuda, False, 1), ("gemm", cuda, False, 3), ("Optimizer.step#AdamW.step", cuda, True, 4),
            ("aten::mm", cpu, False, 0),
        ]
    ]  # fmt: skip
    watched = SimpleNamespace(key_averages=lambda: listed)
    monkeypatch.setattr(torch.profiler, "profile", lambda **_: nullcontext(watched))
    assert [*kernels(lambda: None).items()] == [("gemm", 3.0), ("norm", 1.0)]
