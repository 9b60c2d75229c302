"""What the teacher's number format costs: mask bits that flip between bfloat16 and float32 scoring, and time.

    python -m tests.bench.scoring_numerics RUN [--shards N]

Scores the first N shards of a run again with one engine of each format, in one process after the other, and compares
with the float32 engine. Figures are ratios and fractions of one call; machines differ.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from evidence.manifest import Manifest
from evidence.shards import read_shard
from rollout.cores import cpu_flags, has_bfloat16


def load_rows(run: Path, shards: int) -> list[dict[str, Any]]:
    infos = sorted(Manifest(run / "manifest.jsonl").written().values(), key=lambda info: info.step)[:shards]
    return [row for info in infos for row in read_shard(info.uri, expected=info).to_pylist()]


async def score(run: Path, shards: int, dtype: str, model: str) -> dict[str, Any]:
    from rollout.config import EngineConfig
    from rollout.engine import Engine

    rows = load_rows(run, shards)
    engine = Engine(model, EngineConfig(dtype=dtype), "cpu")
    responses = [np.array(row["response_ids"], np.int32) for row in rows]
    prompts = {key: [np.array(row[key], np.int32) for row in rows] for key in ("prompt_ids", "context_prompt_ids")}
    await engine.score(prompts["prompt_ids"][:8], responses[:8])  # warm
    started = time.perf_counter()
    scored = {key: await engine.score(ids, responses) for key, ids in prompts.items()}
    seconds = time.perf_counter() - started
    engine.shutdown()
    evidence = np.concatenate(scored["context_prompt_ids"]) - np.concatenate(scored["prompt_ids"])
    return {"seconds": seconds, "evidence": evidence.tolist(), "plain": np.concatenate(scored["prompt_ids"]).tolist()}


def compare(exact: dict[str, Any], rough: dict[str, Any]) -> dict[str, float]:
    e, r = np.array(exact["evidence"]), np.array(rough["evidence"])
    flipped = (e > 0) != (r > 0)
    small = np.abs(e) < 0.1
    return {
        "tokens": float(len(e)),
        "logprob_mean_abs_difference": float(np.abs(np.array(exact["plain"]) - np.array(rough["plain"])).mean()),
        "evidence_mean_abs_difference": float(np.abs(e - r).mean()),
        "small_evidence_fraction": float(small.mean()),
        "mask_bits_flipped": float(flipped.mean()),
        "mask_bits_flipped_where_small": float(flipped[small].mean()),
        "mask_bits_flipped_elsewhere": float(flipped[~small].mean()),
        "evidence_mass_flipped": float(np.abs(e[flipped]).sum() / np.abs(e).sum()),
        "time_float32_over_bfloat16": exact["seconds"] / rough["seconds"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--dtype", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not has_bfloat16(cpu_flags()):
        parser.error("found a processor without kernels for bfloat16, where engines compute in float32")
    metadata = read_shard(next(iter(Manifest(arguments.run / "manifest.jsonl").written()))).schema.metadata
    if arguments.dtype:
        model = metadata[b"model_id"].decode()
        print(json.dumps(asyncio.run(score(arguments.run, arguments.shards, arguments.dtype, model))))
        return
    results = {}
    for dtype in ("float32", "bfloat16"):
        command = [sys.executable, __file__, str(arguments.run), "--shards", str(arguments.shards), "--dtype", dtype]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=900)
        results[dtype] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(compare(results["float32"], results["bfloat16"]), indent=2))


if __name__ == "__main__":
    main()
