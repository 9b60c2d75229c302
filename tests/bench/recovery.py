"""What it costs to replace an engine: from its end until its successor serves again, its weights proven, over a bare
engine's start; and what the other engine generates meanwhile, over what it does before.

    python -m tests.bench.recovery [--rounds 4]

A small run with two student engines and a staleness of 1, whose first engine is killed again and again: its actor, its
process and its core in turns; what they are forked from stands. A tiny random model with the default one's tokenizer.
The rest of the run works meanwhile on the same cores, a bare engine (`tests.bench.start`) starts alone. Processor
seconds are the successor's own.
"""

import argparse
import re
import signal
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil

from cluster.default_model import prepare_default_model
from tests.bench.figures import Figure
from tests.bench.start import bare
from tests.fakes import tiny_model
from tests.faults import UnderWay, under_way
from tests.runs import lines, small_arguments

ENGINE = "student engine 0"
OTHER = "student engine 1"
PARTS = (ENGINE, f"{ENGINE} process", f"{ENGINE} core")
SERVES = rf"{ENGINE} serves again, ([\d.]+) s after"
SETTINGS = (
    "run.steps=100000",
    "run.max_policy_lag=1",
    "student.num_engines=2",
    "faults.max_restarts=100",
    "observe.every_s=0.25",
)
STEPS_BEFORE = 8


def steps(folder: Path) -> int:
    metrics = folder / "metrics.jsonl"
    return len(lines(metrics)) if metrics.exists() else 0


def served_again(run: UnderWay, times: int) -> bool:
    return len(re.findall(SERVES, run.said())) > times


def after_steps(run: UnderWay, folder: Path, more: int) -> None:
    end = steps(folder) + more
    run.wait_until(f"step {end}", lambda: steps(folder) >= end)


def replaced(run: UnderWay, folder: Path, turn: int) -> tuple[float, float, float]:
    """Kills a part of the engine: seconds until it serves again, processor seconds of its successor by then, and what
    the other engine generates a second meanwhile, over that of the steps before."""
    after_steps(run, folder, 2)
    before = time.time()
    after_steps(run, folder, STEPS_BEFORE)
    run.send(PARTS[turn % len(PARTS)], signal.SIGKILL)
    begun = time.time()
    run.wait_until("it serves again", partial(served_again, run, turn))
    end = time.time()
    found = run.processes()
    spent_s = spent([found[ENGINE], found[f"{ENGINE} process"]])
    return end - begun, spent_s, rate(folder, begun, end) / rate(folder, before, begun)


def rate(folder: Path, begin: float, end: float) -> float:
    """Tokens that the other engine generates a second between two times."""
    samples = [sample for sample in lines(folder / "samples.jsonl") if begin <= sample["time"] <= end]
    first, last = (
        (one["time"], one["engines"][OTHER]["stats"]["generated_tokens"]) for one in samples[:: len(samples) - 1]
    )
    return float((last[1] - first[1]) / (last[0] - first[0]))


def spent(processes: Sequence[psutil.Process]) -> float:
    """Processor seconds of processes and of all that they have started, also of what of that has ended."""
    total = 0.0
    for one in {one for process in processes for one in (process, *process.children(recursive=True))}:
        with suppress(psutil.NoSuchProcess):
            times = one.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as name:
        tokenizer = prepare_default_model()
        model = tiny_model(Path(name) / "model", tokenizer_from=tokenizer, vocab=49152, hidden_size=128, head_dim=32)
        folder = Path(name) / "run"
        with under_way(small_arguments(folder, f"model.path={model}", *SETTINGS)) as run:
            found = [replaced(run, folder, turn) for turn in range(rounds)]
        alone = [bare(model) for _ in range(rounds)]
    shares = [share for _, _, share in found]
    note = f"{min(shares):.3g} to {max(shares):.3g}"
    Figure("the other engine's tokens/s meanwhile, over before", statistics.median(shares), ">= 0.9", note).say()
    for what, place in (("seconds", 0), ("processor seconds", 1)):
        ours, bares = ([one[place] for one in measured] for measured in (found, alone))
        target = "<= 1.3" if what == "seconds" else ""
        Figure(f"engine replaced, {what}", statistics.median(ours), "", f"{min(ours):.3g} to {max(ours):.3g}").say()
        Figure(f"bare engine, {what}", statistics.median(bares), "", f"{min(bares):.3g} to {max(bares):.3g}").say()
        Figure(
            f"engine replaced over a bare engine's start, {what}",
            statistics.median(ours) / statistics.median(bares), target,
        ).say()  # fmt: skip


if __name__ == "__main__":
    main()
