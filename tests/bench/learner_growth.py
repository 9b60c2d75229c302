"""Memory that a learner on a CPU has after some steps over that after the second, with and without the bounds of
`learner_environment` on what torch keeps for each shape.

    python -m tests.bench.learner_growth [--steps 20]

Each is a process of its own. A step has 32 rows of 8 to 40 tokens, of other lengths each time.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

import numpy as np
import psutil

from cluster.default_model import prepare_default_model
from cluster.fleet.launch import learner_environment
from cluster.fleet.placement import Plan
from evidence.records import TrainRow
from rollout.cores import num_cores
from tests.bench.figures import Figure

PROMPTS, SAMPLES = 8, 4
BOUNDS = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


def make_rows(rng: np.random.Generator) -> list[TrainRow]:
    rows: list[TrainRow] = []
    for prompt in (rng.integers(5, 40_000, rng.integers(30, 80)).astype(np.int32) for _ in range(PROMPTS)):
        for _ in range(SAMPLES):
            response = rng.integers(5, 40_000, rng.integers(8, 41)).astype(np.int32)
            with_r, without, weight = (rng.random(len(response), np.float32) for _ in range(3))
            streams = (-with_r, -without, without - with_r, weight)
            rows.append(TrainRow(str(len(rows)), False, prompt, prompt, response, *streams))
    return rows


def serve(steps: int) -> None:
    """Prints the bytes that the process has and the seconds of each step."""
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_SIZE="1", MASTER_ADDR="127.0.0.1",
                      MASTER_PORT="29613")  # fmt: skip
    from learner.config import LearnerConfig
    from learner.engine import ZeroEngine
    from learner.train import Trainer

    config, rng = LearnerConfig(lr=1e-7), np.random.default_rng(0)
    trainer = Trainer(ZeroEngine(str(prepare_default_model()), config), config)
    for _ in range(steps):
        begun = time.perf_counter()
        trainer.step(make_rows(rng))
        print("STEP", psutil.Process().memory_info().rss, time.perf_counter() - begun, flush=True)


def measure(steps: int, bounded: bool) -> tuple[float, float, float]:
    """GB after the second step and after the last, and the median of their seconds."""
    own = learner_environment(Plan("cpu", "shm", {}, 1, threads=num_cores()))
    own = {name: value for name, value in own.items() if bounded or name not in BOUNDS}
    command = [sys.executable, "-m", "tests.bench.learner_growth", "--serve", "--steps", str(steps)]
    done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True, check=True)
    told = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("STEP")]
    return int(told[1][0]) / 1e9, int(told[-1][0]) / 1e9, statistics.median(float(seconds) for _, seconds in told[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--serve", action="store_true")
    arguments = parser.parse_args()
    if arguments.serve:
        return serve(arguments.steps)
    for name, bounded in (("with nothing bounded", False), ("as it is", True)):
        second, last, seconds = measure(arguments.steps, bounded)
        note = f"{second:.2f} to {last:.2f} GB in {arguments.steps} steps of {seconds:.1f} s"
        Figure(f"a learner's memory after them, {name}", last / second, "", note).say()
    return None


if __name__ == "__main__":
    main()
