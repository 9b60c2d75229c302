"""`edge-opd shards`: what a run's shards hold, and what another mask would have kept. No engine, no cluster."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster.run.rundir import RunDir
from evidence.diagnostics import TokenStats, split_summary
from evidence.manifest import Manifest
from evidence.records import Floats
from evidence.rule import EvidenceConfig
from evidence.schema import shard_metadata
from evidence.shards import read_shard, shard_of, shard_stats
from evidence.sidecar import read_student


def statistics(
    folder: Path,
    tau: float | None = None,
    region: str | None = None,
    tau_kind: str | None = None,
    follow: bool = False,
) -> dict[str, Any]:
    """Per step and in all: rows, tokens and the diagnostics, split by guided and plain.

    Each step is judged by itself, as it was when it was written. Where the run holds the learner's log-probs of a
    trained step, agreement and k1 are among its figures. follow: reads shards that are not in the folder too.

    Raises:
        ValueError: no shards, one that is elsewhere, a damaged shard, or a tau, tau_kind or region that does not exist.
    """
    shards = _shards(folder, follow)
    changes: dict[str, Any] = {"tau": tau, "region": region, "tau_kind": tau_kind}
    rule = dataclasses.replace(
        EvidenceConfig.from_json(shard_metadata(shards[0][0])["mask_rule"]),
        **{key: value for key, value in changes.items() if value is not None},
    )
    stats = [(int(shard_metadata(table)["step"]), shard_stats(table, rule, student)) for table, student in shards]
    return {
        "mask_rule": dataclasses.asdict(rule),
        "shards": len(shards),
        "all": split_summary(pair for _, pairs in stats for pair in pairs),
        "steps": [_step(step, pairs) for step, pairs in stats],
    }


def _step(step: int, pairs: list[tuple[bool, TokenStats]]) -> dict[str, Any]:
    by_group = split_summary(pairs)
    return {"step": step, **by_group["all"], "guided": by_group["guided"], "plain": by_group["plain"]}


def _shards(folder: Path, follow: bool) -> list[tuple[pa.Table, Mapping[str, Floats]]]:
    """Each shard with the learner's log-probs of it, in the order of steps."""
    manifest = Manifest(folder / "manifest.jsonl")
    infos = sorted(manifest.written().values(), key=lambda info: info.step)
    if infos:
        trained = manifest.trained()  # a shard that was written again has not met the learner yet
        return [
            (
                read_shard(shard_of(folder, info, follow), expected=info),
                read_student(str(RunDir(folder).student), info.step) if info.uri in trained else {},
            )
            for info in infos
        ]
    tables = [read_shard(str(path)) for path in sorted(folder.glob("*.arrow"))]
    if not tables:
        raise ValueError(f"{folder}: found no shards, expected a run or a folder of .arrow files")
    return [(table, {}) for table in tables]


def to_text(result: dict[str, Any]) -> str:
    """A table for a person: one line for each of all, guided and plain, then one a step."""
    lines = [f"{result['shards']} shards, mask {result['mask_rule']}"]
    for group, figures in result["all"].items():
        lines.append(f"{group:>8}  " + "  ".join(f"{key} {value:.3f}" for key, value in figures.items()))
    for step in result["steps"]:
        lines.append(
            f"step {step['step']:>4}: rows {step['rows']:.0f}  kept {step['kept']:.3f}  "
            f"mean_evidence {step['mean_evidence']:+.3f}"
        )
    return "\n".join(lines)
