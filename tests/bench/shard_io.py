"""Writing and reading a shard over a plain memory copy of the same bytes.

    python -m tests.bench.shard_io [--rounds 7]

A shard of 4,096 rollouts of 512 tokens. A write is checked, hashed and flushed to the disk; a read is memory-mapped,
hashed and checked. Nothing of what is read is copied: the columns lie in the mapped file.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from evidence.records import EvidenceRecord, RolloutRequest, Sample, ScoredSample
from evidence.rule import EvidenceConfig, judge_all
from evidence.schema import to_table
from evidence.shards import read_shard, write_shard
from tests.bench.figures import Figure

ROWS, TOKENS, PROMPT = 4096, 512, 128


def records() -> list[EvidenceRecord]:
    rng = np.random.default_rng(0)
    prompt = rng.integers(0, 40_000, PROMPT).astype(np.int32)
    scored = []
    for index in range(ROWS):
        request = RolloutRequest(str(index), "p", "g", False, "system", prompt, prompt)
        ids = rng.integers(0, 40_000, TOKENS).astype(np.int32)
        own, with_r, without = (-rng.random(TOKENS).astype(np.float32) for _ in range(3))
        scored.append(ScoredSample(Sample(request, ids, own, "stop", 0, 0), with_r, without, 0))
    return judge_all(scored, [None] * ROWS, EvidenceConfig(), 0)


def median_s(rounds: int, work: Callable[[], object]) -> float:
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    rule = EvidenceConfig()
    metadata = {"run_id": "bench", "mask_rule": rule.to_json(), "model_id": "m", "code_version": "0", "step": "0"}
    made = records()
    begun = time.perf_counter()
    table = to_table(made, metadata | {"weights_digest": "0"})
    build_s = time.perf_counter() - begun
    with tempfile.TemporaryDirectory() as folder:
        info = write_shard(table, folder, "shard.arrow")
        whole = np.fromfile(Path(folder) / "shard.arrow", np.uint8)
        copy_s = median_s(rounds, whole.copy)
        write_s = median_s(rounds, lambda: write_shard(table, folder, "shard.arrow"))
        before = pa.total_allocated_bytes()
        read_s = median_s(rounds, lambda: read_shard(info.uri, expected=info))
        again = read_shard(info.uri, expected=info)
        kept = pa.total_allocated_bytes() - before
        assert again.num_rows == ROWS
    size = f"{len(whole) / 1e6:.0f} MB"
    Figure("shard write over a memory copy", write_s / copy_s, "", f"{size}, {write_s:.3f} s").say()
    Figure("shard read over a memory copy", read_s / copy_s, "", f"{size}, {read_s:.3f} s").say()
    Figure("bytes that a read keeps, over the file's", kept / len(whole), "<= 0.01", "0: zero-copy").say()
    Figure("rows to a table, s", build_s, "", f"{ROWS} rollouts").say()


if __name__ == "__main__":
    main()
