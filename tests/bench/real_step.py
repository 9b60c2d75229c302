"""Where a step's time goes in a real run: four steps of N3 through the command line, the first left out.

python -m tests.bench.real_step [RECIPE.toml] [--steps 4] [--set table.key=value ...]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from evidence.diagnostics import split_summary
from evidence.manifest import Manifest
from evidence.rule import EvidenceConfig
from evidence.schema import shard_metadata
from evidence.shards import read_shard, shard_stats
from tests.bench.figures import Figure

ROOT = Path(__file__).parents[2]


def run(recipe: str, steps: int, overrides: Sequence[str], folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl of a run without probes, but for the two that every run has, of one short answer a question."""
    short = ("run.probe_every=0", "run.checkpoint_every=0", "probe.require=0.0", "probe.samples=1",
             "probe.max_tokens=4")  # fmt: skip
    settings = [part for item in (f"run.steps={steps}", *short, *overrides) for part in ("--set", item)]
    command = [sys.executable, "-m", "cluster", "run", recipe, "--run-dir", str(folder), *settings]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr[-3000:]}")
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def diagnostics_s(folder: Path) -> float:
    """Seconds that a step's diagnostics take, all of them over again from its shard."""
    info = max(Manifest(folder / "manifest.jsonl").written().values(), key=lambda found: found.step)
    table = read_shard(info.uri, expected=info)
    rule = EvidenceConfig.from_json(shard_metadata(table)["mask_rule"])
    begun = time.perf_counter()
    split_summary(shard_stats(table, rule))
    return time.perf_counter() - begun


def copy_s(model: Path) -> tuple[float, float]:
    """(seconds of a plain copy of the weights that a push sends to one engine, their bytes)."""
    tensors = [parameter.data for parameter in AutoModelForCausalLM.from_pretrained(str(model)).parameters()]
    targets = [torch.empty_like(tensor) for tensor in tensors]
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        for target, tensor in zip(targets, tensors, strict=True):
            target.copy_(tensor)
        times.append(time.perf_counter() - begun)
    return statistics.median(times), sum(tensor.nbytes for tensor in tensors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", nargs="?", default="cluster/recipes/N3.toml")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--set", action="append", default=[])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        records = run(arguments.recipe, arguments.steps, arguments.set, folder)[1:]
        wall_s = statistics.median(record["wall_s"] for record in records)
        stages = {
            stage: statistics.median(record["stages"][stage]["seconds"] for record in records)
            for stage in records[0]["stages"]
        }
        judged_s = stages["write"] + diagnostics_s(folder)
        plain_s, size = copy_s(folder / "export")
    Figure("step over the sum of its stages, lag 0", 1 / statistics.mean(r["busy_fraction"] for r in records),
           "<= 1.1", f"{wall_s:.1f} s a step").say()  # fmt: skip
    Figure("mask, diagnostics and shard over step", judged_s / wall_s, "<= 0.01", f"{judged_s * 1e3:.0f} ms").say()
    Figure("push and its checks over a plain copy", stages["push"] / plain_s, "<= 10",
           f"{stages['push']:.2f} s, {size / 1e6:.0f} MB to one engine").say()  # fmt: skip
    for stage, seconds in stages.items():
        tokens = statistics.median(record["stages"][stage]["tokens"] for record in records)
        Figure(f"{stage} over step", seconds / wall_s, "", f"{tokens / seconds:.0f} tokens/s" if tokens else "").say()


if __name__ == "__main__":
    main()
