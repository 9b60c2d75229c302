"""How long a push takes beside rollouts: small real runs with and without a lag, turn by turn with another checkout.

    python -m tests.bench.push [--against FOLDER] [--lags 0 1] [--steps 6] [--tokens 60]

A tiny random model, whose responses all have the longest length, and engines that hold twice as many as they run.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from cluster.default_model import prepare_default_model
from tests.bench.figures import Figure
from tests.fakes import tiny_model

ROOT = Path(__file__).parents[2]
RECIPE = "cluster/recipes/N3.toml"
SETTINGS = (
    "run.probe_every=0", "run.checkpoint_every=0", "probe.require=0.0", "probe.samples=1", "probe.max_tokens=2",
    "probe.gap=false", "rollout.prompts_per_step=2", "rollout.samples_per_prompt=4", "student.max_num_seqs=2",
    "student.window=512", "teacher.window=512", "learner.micro_batch_tokens=1024",
)  # fmt: skip


def pushes(checkout: Path, folder: Path, model: Path, lag: int, steps: int, tokens: int) -> list[float]:
    """Seconds of each push of a run but the first two."""
    own = (f"model.path={model}", f"run.steps={steps}", f"run.max_policy_lag={lag}")
    settings = [*SETTINGS, *own, f"rollout.max_response_tokens={tokens}"]
    overrides = [part for item in settings for part in ("--set", item)]
    command = [sys.executable, "-m", "cluster", "run", RECIPE, "--run-dir", str(folder), *overrides]
    env = os.environ | {"PYTHONPATH": str(checkout)}
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=900, env=env)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr[-3000:]}")
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record["stages"]["push"]["seconds"] for record in records[2:]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--lags", type=int, nargs="+", default=[0, 1])
    arguments = parser.parse_args()
    checkouts = {"": ROOT} | ({"before: ": arguments.against.resolve()} if arguments.against else {})
    with tempfile.TemporaryDirectory() as name:
        folder, tokenizer = Path(name) / "model", prepare_default_model()
        model = tiny_model(
            folder, vocab=49152, dtype="bfloat16", tokenizer_from=tokenizer, hidden_size=128, head_dim=32
        )
        for lag in arguments.lags:
            for who, checkout in reversed(checkouts.items()):
                folder = Path(name) / f"run-{len(os.listdir(name))}"
                found = pushes(checkout, folder, model, lag, arguments.steps, arguments.tokens)
                note = f"{min(found):.2f} to {max(found):.2f} s, responses of {arguments.tokens} tokens"
                Figure(f"{who}seconds of a push, lag {lag}", statistics.median(found), "", note).say()


if __name__ == "__main__":
    main()
