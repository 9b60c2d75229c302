"""What no reader of a run's JSON takes: numbers beyond what is computed with, and JSON without end."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.__main__ import main
from cluster.report.runs import SHARD, read_runs
from cluster.run.checkpoints import COMPLETE, Checkpoints
from cluster.run.inputs import read_pins
from cluster.run.lock import OWNER, read_owner
from cluster.run.planned import EnginePlan, MemoryPlan
from cluster.run.record import append_plan, read_gap, read_notes, read_plans, read_probes, read_steps
from evidence.lines import from_json
from evidence.manifest import Manifest
from evidence.records import ShardInfo
from evidence.telemetry import read_samples, read_spans
from tests.observed import observed_run

HUGE = 10**400  # beyond a float
NESTED = "[" * 100_000

READERS: dict[str, Callable[[Path], object]] = {
    "metrics.jsonl": read_steps,
    "probes.jsonl": read_probes,
    "samples.jsonl": read_samples,
    "trace.jsonl": read_spans,
    "memory.jsonl": read_plans,
    "manifest.jsonl": lambda path: Manifest(path).written(),
    "gap.json": read_gap,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = observed_run(tmp_path_factory.mktemp("runs") / "observed", steps=1)
    engines = {"student": EnginePlan(0.5, 1.0)}
    append_plan(folder / "memory.jsonl", MemoryPlan(1.0, "cpu", 1024, engines, False, ()))
    Manifest(folder / "manifest.jsonl").append_written(ShardInfo("a.arrow", 0, 8, 64, "ab"))
    return folder


def numbers(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all numbers in a value of JSON."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from numbers(one, (*above, key))
    if type(value) in (int, float):
        yield above


def with_number(value: Any, place: tuple[Any, ...], number: float) -> str:
    changed = inner = json.loads(json.dumps(value))
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = number
    return json.dumps(changed)


@pytest.mark.parametrize("name", READERS)
def test_a_number_of_400_digits_anywhere_in_a_runs_files_is_named_with_its_line(
    run: Path, name: str, tmp_path: Path
) -> None:
    *before, last = (run / name).read_text().splitlines()
    places = list(numbers(json.loads(last)))
    where = f"line {len(before) + 1}: found" if name.endswith(".jsonl") else "found no gap"
    said = f"found the whole number {str(HUGE)[:20]}... of 401 digits, expected one of 64 bits"
    assert places
    for place in places:
        (tmp_path / name).write_text("\n".join([*before, with_number(json.loads(last), place, HUGE)]) + "\n")
        with pytest.raises(ValueError) as caught:
            READERS[name](tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: {where}"), place
        assert said in str(caught.value) and "\n" not in str(caught.value), place


@pytest.mark.parametrize("name", READERS)
def test_brackets_without_end_are_named_with_their_line(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(NESTED + "\n")
    with pytest.raises(ValueError, match="found JSON that is nested too deep") as caught:
        READERS[name](tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("text", [f"[{HUGE}]", NESTED], ids=["number", "brackets"])
def test_a_run_s_other_files_with_such_json_are_damaged_ones(text: str, run: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "inputs.json"
    damaged.write_text(text)
    for read in (read_pins, read_notes):
        with pytest.raises(ValueError, match=r"inputs\.json: found no inputs of a run"):
            read(damaged)
    (tmp_path / OWNER).write_text(text)
    assert read_owner(tmp_path) is None
    checkpoints = Checkpoints(tmp_path / "checkpoints", 0.0)
    place = checkpoints.place(3)
    place.mkdir(parents=True)
    (place / COMPLETE).write_text(text)
    assert checkpoints.complete() == []


def test_a_report_names_the_record_of_a_shard_that_is_none(run: Path) -> None:
    (run / SHARD).write_text("[1]\n")
    try:
        with pytest.raises(
            ValueError, match=r"shard\.json: found no metadata of a shard \(.*\), expected what a report"
        ):
            read_runs([run])
    finally:
        (run / SHARD).unlink()


@pytest.mark.parametrize("command", ["dashboard", "trace", "export-metrics"])
def test_a_command_ends_with_one_line(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = observed_run(tmp_path / "run", steps=2)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[1] = with_number(json.loads(lines[1]), ("wall_s",), HUGE)
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert main([command, str(run)]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"edge-opd: {run / 'metrics.jsonl'}: line 2: found ")


@pytest.mark.parametrize("number", [2**63 - 1, -(2**63), 0, 1.5, 1e300])
def test_a_number_of_64_bits_comes_back(number: float) -> None:
    assert from_json(json.dumps([number])) == [number]


@pytest.mark.parametrize("number", [str(2**63), str(-(2**63) - 1), "1" + 20 * "0", f"-{HUGE}", "1" * 5000])
def test_a_number_beyond_64_bits_is_refused(number: str) -> None:
    with pytest.raises(ValueError, match=r"found the whole number .* digits, expected one of 64 bits"):
        from_json(f"[{number}]")
