"""Processor seconds of what a run of local-smoke checks before its first step, each check in a fresh process on one
thread.

    python -m tests.bench.start_checks [--rounds 3]

The driver's look at recipe, prompts and storage (here a folder), and at what a resumed run is to find again; the
learner's at packed rows, at the model's own forward, at an export, and at what is between head and logits, once more.
Reading the model's weights and its tokenizer, once each, and importing libraries are not counted: a run without checks
does them as well. The tokenizer is timed beside the check that reads it.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from cluster.config import load_recipe
from cluster.default_model import prepare_default_model
from cluster.run.checks import check_recipe
from cluster.run.inputs import pins_of
from learner.export import Exporter
from learner.load import DTYPES, distance_from_own_forward, mixes_rows
from learner.logits import logit_form
from learner.names import held_tensors
from rollout.tasks import build_task
from rollout.tokenizer import load_tokenizer
from tests.bench.figures import Figure
from tests.bench.learner_step import ROOT

RECIPE = "cluster/recipes/local-smoke.toml"


def timed(check: Callable[[], object]) -> float:
    start = time.process_time()
    check()
    return time.process_time() - start


def measure_here() -> dict[str, float]:
    torch.set_num_threads(1)
    storage = tempfile.TemporaryDirectory()
    recipe, model = load_recipe(RECIPE, [f"run.storage={storage.name}"]), str(prepare_default_model())
    task = build_task(recipe.task)
    load_tokenizer(model)  # imports what reads tokenizers
    causal_lm = AutoModelForCausalLM.from_pretrained(model, dtype=DTYPES[recipe.learner.dtype])
    for parameter in causal_lm.parameters():
        parameter.data.sum()  # a mapped file is read at the first touch

    def rehearsal() -> None:
        exporter = Exporter(model, causal_lm, recipe.learner)
        shapes = {name: torch.empty_like(held, device="meta") for name, held in held_tensors(causal_lm).items()}
        with tempfile.TemporaryDirectory() as folder:
            exporter.rehearse(shapes, Path(folder) / "export")

    return {
        "recipe and prompts": timed(lambda: check_recipe(recipe, task)) - timed(lambda: load_tokenizer(model)),
        "the inputs' pins": timed(lambda: pins_of(recipe, model, task)),
        "packed rows": timed(lambda: mixes_rows(causal_lm)),
        "the model's own forward": timed(lambda: distance_from_own_forward(causal_lm)),
        "the export's rehearsal": timed(rehearsal),
        "the student's logits": timed(lambda: logit_form(causal_lm)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--here", action="store_true", help="one round in this process")
    arguments = parser.parse_args()
    if arguments.here:
        return print(json.dumps(measure_here()))
    command = [sys.executable, "-m", "tests.bench.start_checks", "--here"]
    rounds = []
    for _ in range(arguments.rounds):
        output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
        rounds.append(json.loads(output.splitlines()[-1]))
    for name in rounds[0]:
        Figure(f"{name}, processor seconds", statistics.median(found[name] for found in rounds)).say()
    sums = [sum(found.values()) for found in rounds]
    Figure("checks of a start, processor seconds", max(sums), "<= 2", "the most of the rounds").say()
    return None


if __name__ == "__main__":
    main()
