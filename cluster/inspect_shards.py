"""`edge-opd shards`: what a run's shards hold, and what another mask would have kept. No engine, no cluster."""

import dataclasses
from pathlib import Path
from typing import Any

import pyarrow as pa

from evidence.manifest import Manifest
from evidence.rule import EvidenceConfig
from evidence.schema import shard_metadata
from evidence.shards import read_shard, recompute


def statistics(folder: Path, tau: float | None, region: str | None) -> dict[str, Any]:
    """Per step and in all: rows, tokens and the diagnostics that need no student, split by guided and plain.

    Raises:
        ValueError: no shards, a damaged shard, or a region that does not exist.
    """
    tables = _tables(folder)
    rule = EvidenceConfig.from_json(shard_metadata(tables[0])["mask_rule"])
    rule = dataclasses.replace(
        rule,
        tau=rule.tau if tau is None else tau,
        region=rule.region if region is None else region,
    )
    return {
        "mask_rule": dataclasses.asdict(rule),
        "shards": len(tables),
        "all": recompute(pa.concat_tables([t.unify_dictionaries() for t in tables]), rule),
        "steps": [
            {"step": int(shard_metadata(table)["step"]), "rows": table.num_rows, **recompute(table, rule)["all"]}
            for table in tables
        ],
    }


def _tables(folder: Path) -> list[pa.Table]:
    manifest = folder / "manifest.jsonl"
    if manifest.is_file():
        infos = sorted(Manifest(manifest).written().values(), key=lambda info: info.step)
        tables = [read_shard(info.uri, expected=info) for info in infos]
    else:
        tables = [read_shard(str(path)) for path in sorted(folder.glob("*.arrow"))]
    if not tables:
        raise ValueError(f"{folder}: found no shards, expected a run or a folder of .arrow files")
    return tables


def to_text(result: dict[str, Any]) -> str:
    """A table for a person: one line for each of all, guided and plain, then one a step."""
    lines = [f"{result['shards']} shards, mask {result['mask_rule']}"]
    for group, figures in result["all"].items():
        lines.append(f"{group:>8}  " + "  ".join(f"{key} {value:.3f}" for key, value in figures.items()))
    for step in result["steps"]:
        lines.append(
            f"step {step['step']:>4}: rows {step['rows']}  kept {step['kept']:.3f}  e {step['mean_evidence']:+.3f}"
        )
    return "\n".join(lines)
