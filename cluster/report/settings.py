"""What the runs of a group were told: settings they share, once, and those that tell them apart."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cluster.report.groups import Group, Pool
from cluster.report.runs import Run, model_name

_TABLES = ("model", "task", "template", "run", "rollout", "evidence", "teacher", "learner", "probe")
_NAMES = ("run.name", "run.seed", "run.storage", "run.date")  # tell runs apart without being settings


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
        model=run.shard.get("model_id") or model_name(run.recipe.model.path),
        code_version=run.shard.get("code_version", "unknown"),
        machine=run.shard.get("machine", "not recorded"),
        minutes=sum(step.wall_s or 0.0 for step in run.steps.values()) / 60,
        tokens=sum(step.stats["all"].tokens for step in run.steps.values() if step.stats),
        base=base,
    )


def settings(group: Group) -> Settings:
    """The settings of a group's runs, split by whether all share them. One that is younger than some of the runs is
    shown only where it tells others apart."""
    stated = dict.fromkeys(place for run in group.runs for place in run.stated)
    places = {f"{table}.{key}": (table, key) for shown in _TABLES for table, key in stated if table == shown}
    shared, differing = {}, {}
    for name, place in places.items():
        if name in _NAMES:
            continue
        values = [_value(run, *place) for run in group.runs]
        if values.count(values[0]) < len(values):
            differing[name] = {pool.arm.code: _value(pool.runs[0], *place) for pool in group.pools}
        elif all(place in run.stated for run in group.runs):
            shared[name] = values[0]
    return Settings(shared, differing)


def _value(run: Run, table: str, key: str) -> Any:
    """As TOML has it, which knows no tuples."""
    settings = getattr(run.recipe, table)
    value = settings.get(key) if isinstance(settings, dict) else getattr(settings, key)
    return list(value) if isinstance(value, tuple) else value
