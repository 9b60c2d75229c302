"""What became of a run and of each of its faults, as its folder and its lines say."""

import re
import signal
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.run.replay import learned_groups
from cluster.run.rundir import RunDir
from evidence.manifest import Manifest
from tests.chaos.outcome import Fault
from tests.runs import lines

Lines = Sequence[tuple[float, str]]  # what a run said, each with its moment
Record = Mapping[str, Any]  # a line of metrics.jsonl


@dataclass(frozen=True)
class Hit:
    """A fault that has been made. at: on the clock of the run's lines; clock: on that of its records; began: when the
    run did, on the clock of its lines."""

    target: str
    number: signal.Signals
    moment: str
    at: float
    clock: float
    began: float


def records_of(folder: Path) -> list[dict[str, Any]]:
    path = RunDir(folder).metrics
    return lines(path) if path.exists() else []


def learned_once(folder: Path, steps: int, prompts: int) -> bool:
    """Whether every group of the run was learned from, and none twice."""
    counts = Counter(learned_groups(RunDir(folder)))
    expected = {f"{step:06d}-{slot:03d}" for step in range(steps) for slot in range(prompts)}
    return counts.keys() == expected and set(counts.values()) == {1}


def trained_is_written(folder: Path, steps: int) -> bool:
    """Whether every shard that stands was trained, and every step has its line."""
    manifest = Manifest(RunDir(folder).manifest)
    same = manifest.trained() == set(manifest.written())
    return same and [record["step"] for record in records_of(folder)] == list(range(steps))


def fault_of(hit: Hit, said: Lines, records: Sequence[Record], status: int, lag: int) -> Fault:
    """Where all services start again, a lost engine's successor is one of theirs."""
    engine = r"\w+ engine \d+" if hit.target == "fork server" else re.sub(" (process|core|worker)$", "", hit.target)
    noticed = since(hit.at, said, (rf"{engine}.*; it is replaced", "the services start again"))
    back = since(hit.at, said, (f"{engine} serves again", "resumed at step"))
    return Fault(
        hit.target, hit.number.name, hit.moment, hit.at - hit.began, noticed if hit.target != "driver" else None, back,
        status == 0 or any(record["time"] > hit.clock for record in records), proven(records, hit.clock, lag),
    )  # fmt: skip


def since(at: float, said: Lines, patterns: Sequence[str]) -> float | None:
    """Seconds from the moment to the first line after it with one of these."""
    return next(
        (moment - at for moment, line in said if moment > at and any(re.search(one, line) for one in patterns)), None
    )


def proven(records: Sequence[Record], clock: float, lag: int) -> bool | None:
    """Whether each step that was pushed after the moment says what the engines held; None where there is none. One that
    was learned again from its shard pushed nothing."""
    pushed = [record for record in records if record["time"] > clock and record["weights_digest"]]
    return all(_is_proven(record, lag) for record in pushed) if pushed else None


def _is_proven(record: Record, lag: int) -> bool:
    step, canary, bound = record["step"], record["canary"], record["canary_bound"]
    sampled = step - lag <= record["policy_version_min"] <= record["policy_version_max"] <= step
    return sampled and canary is not None and bound is not None and 0 <= canary <= bound
