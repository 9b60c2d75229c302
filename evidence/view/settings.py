"""What the runs of a group were told: settings they share, once, and those that tell them apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evidence.view.arms import Config
from evidence.view.groups import Group, Pool
from evidence.view.runs import Run, model_name

_TABLES = ("model", "task", "run", "rollout", "evidence", "teacher", "learner", "probe")
_NAMES = ("run.name", "run.seed", "run.storage")  # tell runs apart without being settings


@dataclass(frozen=True)
class RunLine:
    """One run as the report lists it. `minutes` and `tokens` are sums over metrics.jsonl."""

    name: str
    arm: str
    label: str
    seed: int
    status: str
    record: str  # folder in the report with the run's own files
    model: str
    code_version: str
    machine: str
    minutes: float
    tokens: int
    base: str  # how its step-0 probe is used


@dataclass(frozen=True)
class Settings:
    """`shared`: key -> value of all runs. `differing`: key -> arm -> value."""

    shared: Mapping[str, Any]
    differing: Mapping[str, Mapping[str, Any]]


def run_lines(group: Group) -> list[RunLine]:
    """Every run of a group, by arm and seed."""
    counted = {run.name for run in group.distinct_bases()}
    prefix = "" if group.task == group.axis else f"{group.task}-"  # a second task has arms of the same codes
    return [_line(pool, run, counted, prefix) for pool in group.pools for run in pool.runs]


def _line(pool: Pool, run: Run, counted: set[str], prefix: str) -> RunLine:
    base = "counted" if run.name in counted else "repeats another" if 0 in run.probes else "missing"
    return RunLine(
        name=run.name,
        arm=pool.arm.code,
        label=pool.arm.label,
        seed=run.seed,
        status=run.status,
        record=f"runs/{prefix}{pool.arm.code}-seed{run.seed}",
        model=run.shard.get("model_id") or model_name(str(run.config.get("model", {}).get("path", "unknown"))),
        code_version=run.shard.get("code_version", "unknown"),
        machine=run.shard.get("machine", "not recorded"),
        minutes=sum(step.get("wall_s", 0.0) for step in run.steps.values()) / 60,
        tokens=sum(int(step["diagnostics"]["all"]["tokens"]) for step in run.steps.values() if "diagnostics" in step),
        base=base,
    )


def settings(group: Group) -> Settings:
    """The settings of all runs of a group, split by whether they share them. A key that a run lacks is "-"."""
    flat = {run.name: _flat(run.config) for run in group.runs}
    keys = [key for key in dict.fromkeys(key for found in flat.values() for key in found) if key not in _NAMES]
    shared = {key: values[0] for key in keys if len(set(map(str, values := _values(flat, key)))) == 1}
    differing = {
        key: {pool.arm.code: _values({run.name: flat[run.name] for run in pool.runs}, key)[0] for pool in group.pools}
        for key in keys
        if key not in shared
    }
    return Settings(shared, differing)


def _values(flat: Mapping[str, Mapping[str, Any]], key: str) -> Sequence[Any]:
    return [found.get(key, "-") for found in flat.values()]


def _flat(config: Config) -> dict[str, Any]:
    return {f"{table}.{key}": value for table in _TABLES for key, value in config.get(table, {}).items()}
