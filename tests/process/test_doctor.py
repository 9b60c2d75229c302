"""The doctor on this machine."""

import sys
from pathlib import Path

import pytest

from cluster.commands.doctor import (
    Finding,
    check_default_model,
    print_report,
    report,
)
from rollout.cores import num_cores


def test_the_prepared_default_model_is_named(default_model: Path) -> None:
    assert check_default_model() == Finding(f"default model: {default_model}")


def test_this_machine(default_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts, found = report()
    assert f"python {sys.version.split()[0]}" in facts
    assert any(fact.startswith(f"cores: {num_cores()} ") for fact in facts)
    assert sum(fact.startswith("device: ") for fact in facts) == 1
    assert all("\n" not in line for line in facts + found)
    assert print_report() == (1 if found else 0)
    printed = capsys.readouterr().out
    assert all(line in printed for line in facts + found)
    assert printed.rstrip().endswith(" found")


def test_a_problem_makes_the_exit_status_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert print_report() == 1
