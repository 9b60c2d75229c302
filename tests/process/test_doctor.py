"""The doctor on this machine."""

import sys
from pathlib import Path

import pytest

from cluster.__main__ import main
from cluster.commands import doctor
from cluster.commands.doctor import (
    Finding,
    check_default_model,
    print_report,
    report,
)
from cluster.sizing.cards import find_cards
from rollout.cores import num_cores


def test_the_prepared_default_model_is_named(default_model: Path) -> None:
    assert check_default_model() == Finding(f"default model: {default_model}")


def test_this_machine(default_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "free_gib", lambda _: 100.0)  # others write to the disk between the two reports
    facts, found = report()
    assert f"python {sys.version.split()[0]}" in facts
    assert any(fact.startswith(f"cores: {num_cores()} ") for fact in facts)
    assert sum(fact.startswith("device: ") for fact in facts) == 1
    assert all("\n" not in line for line in facts + found)
    assert print_report() == (1 if found else 0)
    printed = capsys.readouterr().out
    assert all(line in printed for line in facts + found)
    assert printed.rstrip().endswith(" found")


def test_a_machine_without_a_gpu_says_so_when_it_is_asked(
    default_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if find_cards():
        pytest.skip("this machine has a GPU: tests/gpu looks at it")
    assert main(["doctor", "--gpu"]) == 1 and "PROBLEM  GPUs: found none" in capsys.readouterr().out
    assert main(["doctor"]) in (0, 1) and "GPUs: found none" not in capsys.readouterr().out


def test_a_problem_makes_the_exit_status_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert print_report() == 1
