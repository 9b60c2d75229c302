"""Peak memory of one step as its one row grows, ours and a plain loop's: full logits and transformers' attention.

    python -m tests.bench.row_memory

A model of two layers 64 wide with a real vocabulary, in float32, anchored; memory is what a process holds at most
beyond what it holds before the step. Each length is a process of its own. The plain loop's largest row takes about 13
GB. Where those are not free, its memory is told as a multiple of a shorter row's: logits are nearly all of it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from evidence.records import TrainRow
from tests import fakes
from tests.bench.figures import Figure
from tests.bench.learner_step import ROOT, resource_peak
from tests.reference import plain_model

VOCABULARY, PROMPT_TOKENS, BETA = 49_152, 40, 0.05
LENGTHS = (1024, 4096, 16_384)
PLAIN_BYTES = 1 << 20  # of a token, about: logits, log-probs and their gradients


def one_row(length: int) -> TrainRow:
    rng = np.random.default_rng(0)
    prompt, response = (
        rng.integers(5, VOCABULARY, size).astype(np.int32) for size in (PROMPT_TOKENS, length - PROMPT_TOKENS)
    )
    with_r, without = (-5 * rng.random(len(response), np.float32) for _ in range(2))
    streams = (with_r, without, with_r - without, np.ones(len(response), np.float32))
    return TrainRow("0", False, prompt, prompt, response, *streams)


def ours(folder: Path, row: TrainRow) -> Callable[[], object]:
    from learner.config import LearnerConfig
    from learner.train import Trainer

    config = LearnerConfig(beta_kl=BETA, dtype="float32", head_chunk_tokens=256, lr=1e-7)
    trainer = Trainer(fakes.PlainLearner(folder, config), config)  # type: ignore[arg-type]
    return lambda: trainer.step([row])


def plain(folder: Path, row: TrainRow) -> Callable[[], object]:
    model = plain_model(folder)
    model.set_attn_implementation("sdpa")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-7)
    full = torch.from_numpy(np.concatenate([row.prompt_ids, row.response_ids])).long()
    streams = (row.teacher_context_logprobs, row.teacher_logprobs)
    with_r, without = (torch.from_numpy(stream) for stream in streams)

    def step() -> None:
        logits = model(full[None], use_cache=False).logits[0, :-1]
        own = torch.log_softmax(logits, -1).gather(1, full[1:, None])[PROMPT_TOKENS - 1 :, 0]
        d = without - own
        (-((with_r - own.detach()) * own) + BETA * (d.exp() - d - 1)).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measured(side: str, length: int, folder: Path) -> float:
    """Bytes, in a process of its own."""
    command = [sys.executable, "-m", "tests.bench.row_memory", "--one", side, str(length), str(folder)]
    output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return float(json.loads(output.splitlines()[-1]))


def measure_here(side: str, length: int, folder: Path) -> None:
    step = {"ours": ours, "plain": plain}[side](folder, one_row(length))
    before = resource_peak()
    step()
    print(json.dumps(resource_peak() - before))


def free_bytes() -> int:
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=3, metavar=("SIDE", "LENGTH", "FOLDER"))
    arguments = parser.parse_args()
    if arguments.one:
        return measure_here(arguments.one[0], int(arguments.one[1]), Path(arguments.one[2]))
    with tempfile.TemporaryDirectory() as name:
        folder = fakes.tiny_model(Path(name), vocab=VOCABULARY, max_position_embeddings=LENGTHS[-1])
        mine = [measured("ours", length, folder) for length in LENGTHS]
        longest = LENGTHS[-1]
        while longest * PLAIN_BYTES > free_bytes() and longest > LENGTHS[0]:
            longest //= 2
        theirs = measured("plain", longest, folder) * LENGTHS[-1] / longest
    for length, found in zip(LENGTHS, mine, strict=True):
        Figure(f"peak memory of a row of {length} tokens, MB", found / 1e6).say()
    slopes = [(big - small) / (b - a) for small, big, a, b in zip(mine, mine[1:], LENGTHS, LENGTHS[1:], strict=False)]
    Figure("bytes a token from 4k to 16k over those from 1k to 4k", slopes[1] / slopes[0], "<= 1.2").say()
    note = f"{mine[-1] / 1e9:.2f} and {theirs / 1e9:.2f} GB; the plain loop's measured at {longest} tokens"
    Figure("peak memory at 16k tokens over a plain loop's", mine[-1] / theirs, "<= 0.25", note).say()
    return None


if __name__ == "__main__":
    main()
