"""RUN/config.toml: a run's own recipe, typed, and meaning what it meant when the run was made."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cluster.config import Recipe
from cluster.typed import build, parse_overrides

Key = tuple[str, str]  # (table, key)

# Migrations: keys that older runs lack, and what those runs did. Of any other key a run that lacks it did what is now
# its default.
ADDED: Mapping[Key, Any] = {
    ("learner", "evidence_scale"): 1.0,
    ("learner", "lora_rank"): 0,
    ("learner", "lora_targets"): ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    ("rollout", "ordinary_share"): 0.0,
    ("run", "group_order"): "done",
    ("task", "ordinary_file"): "",
    ("task", "ordinary_questions"): False,
    ("teacher", "url"): "",
}
UNCHANGING = frozenset({"observe", "faults"})  # tables that change no result
# Defaults that were those of every device: then, and today. A run that has none of today's is of then; such were on
# CPUs, where today's do the same.
BY_DEVICE: Mapping[Key, tuple[Any, Any]] = {
    ("student", "enforce_eager"): (True, "auto"),
    ("teacher", "enforce_eager"): (True, "auto"),
    ("student", "gpu_memory_utilization"): (0.3, 0.0),
    ("teacher", "gpu_memory_utilization"): (0.3, 0.0),
    ("teacher", "dtype"): ("float32", "auto"),
    ("learner", "head_chunk_tokens"): (256, 0),
}
# How a run lies in a machine's memory: a run may be resumed with others, and learns the same but for rounding.
LAYOUT: frozenset[Key] = frozenset(
    {("student", "kv_cache_gib"), ("teacher", "kv_cache_gib"), ("learner", "micro_batch_tokens")}
)
RENAMED: Mapping[Key, Key] = {("run", "require_selfname"): ("probe", "require")}  # an older key to today's
ADAPTER_KEYS = frozenset({"lora_alpha", "lora_targets"})  # mean nothing without learner.lora_rank


@dataclass(frozen=True)
class Resolved:
    """A run's recipe, and the keys that its file has, in their order: younger ones are filled in."""

    recipe: Recipe
    stated: tuple[Key, ...]


def read_resolved(run: Path, overrides: Sequence[str] = ()) -> Resolved:
    """The recipe of a run directory, with `table.key=value` overrides over it.

    Raises:
        ValueError: not a run directory, not TOML, or no recipe; names the file and the key.
    """
    path = run / "config.toml"
    tables = _renamed(_tables(run, path))
    stated = tuple((table, key) for table, keys in tables.items() if isinstance(keys, dict) for key in keys)
    for table, key in ADDED.keys() - set(stated):
        if isinstance(tables.setdefault(table, {}), dict):
            tables[table][key] = ADDED[table, key]
    return Resolved(build(Recipe, parse_overrides(overrides, tables), str(path)), stated)


def _tables(run: Path, path: Path) -> dict[str, Any]:
    if not run.is_dir():
        raise ValueError(f"{run}: found no such folder, expected a run directory")
    if not path.is_file():
        raise ValueError(f"{run}: found no config.toml, expected a run directory")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # also of a number or of brackets that Python does not read
        raise ValueError(f"{path}: found text that is not TOML ({error}), expected a resolved recipe") from None


def _renamed(tables: dict[str, Any]) -> dict[str, Any]:
    for (table, old), (home, new) in RENAMED.items():
        if isinstance(tables.get(table), dict) and old in tables[table]:
            value = tables[table].pop(old)
            if isinstance(tables.setdefault(home, {}), dict):
                tables[home].setdefault(new, value)
    return tables


def of_today(recipe: Recipe) -> Recipe:
    """What does the same with today's defaults."""
    values = {(table, key): getattr(getattr(recipe, table), key) for table, key in BY_DEVICE}
    if any(values[place] == now for place, (_, now) in BY_DEVICE.items()):
        return recipe
    for (table, key), (then, now) in BY_DEVICE.items():
        if values[table, key] == then:
            owner = replace(getattr(recipe, table), **{key: now})
            recipe = replace(recipe, **{table: owner})
    return recipe


def difference(one: Recipe, other: Recipe) -> Key | None:
    """The first key in which two recipes are not the same run; keys of an adapter count only where there is one, the
    order of groups where there is more than one, and those of `LAYOUT` never."""
    unread = set(LAYOUT)
    if not (one.learner.lora_rank or other.learner.lora_rank):
        unread |= {("learner", key) for key in ADAPTER_KEYS}
    if not (one.run.max_policy_lag or other.run.max_policy_lag):
        unread.add(("run", "group_order"))
    tables, others = asdict(one), asdict(other)
    keys = (
        (table, key)
        for table, values in tables.items()
        if table not in UNCHANGING
        for key in {**values, **others[table]}
    )
    return next(
        (
            (table, key)
            for table, key in keys
            if tables[table].get(key) != others[table].get(key) and (table, key) not in unread
        ),
        None,
    )
