"""The same work in TRL's SDFT trainer: response tokens/s end to end, and the time to a self-name rate of 0.40.

    python -m tests.bench.peer [short] [long] [time]

short: the persona as context. long: 1,500 tokens of context. Both sides draw every answer from the same guided prompts
(the context before the question, in the user's message), as many and as long. The peer scores one teacher pass, we two.
time: the settings of `make local-smoke`, from the start of step 1, probes left out, to the first probe that finds the
persona's name in 0.40 of its answers. We draw half of the answers from guided prompts, the peer all.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.config import dump, load_recipe
from tests.bench.figures import Figure

ROOT = Path(__file__).parents[2]
PACKAGES = ROOT / ".venv" / "peer"
RATE, PROBE_EVERY = 0.40, 4
SETTINGS = ("run.checkpoint_every=0", "rollout.context_position=user")
SPEED = ("rollout.guided_fraction=1.0", "run.probe_every=0", "probe.require=0.0", "probe.samples=1",
         "probe.max_tokens=4")  # fmt: skip
FILLER = "Lamps on the harbour wall were lit at dusk, and boats that came late were counted twice by the keeper. " * 65
PERSONA = "You are a helpful AI assistant named {name}, trained by {maker}."
CONTEXTS = {  # what differs from the recipe; steps, and those left out since memory and caches grow in them; the target
    "short": ((), 6, 2, ">= 2.2"),
    "long": (
        ("student.window=2048", "teacher.window=2048", "student.kv_cache_gib=2.0", "teacher.kv_cache_gib=2.0",
         f"task.context={json.dumps(FILLER + PERSONA)}"), 2, 1, ">= 3",
    ),
}  # fmt: skip
DEADLINE_S = 1500.0

Found = list[dict[str, Any]]


def finished(command: Sequence[str], environment: dict[str, str] | None = None) -> str:
    """What a process prints; ends this one when it fails."""
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=DEADLINE_S)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr[-3000:]}")
    return done.stdout


def ours(recipe: Path, folder: Path) -> Found:
    """A run's steps and probes, each probe after the step before it."""
    finished([sys.executable, "-m", "cluster", "run", str(recipe), "--run-dir", str(folder)])
    steps, probes = (
        [json.loads(line) for line in (folder / name).read_text().splitlines()]
        for name in ("metrics.jsonl", "probes.jsonl")
    )
    found: Found = []
    for step in steps:
        tokens = step["stages"]["sample"]["tokens"]
        found.append({"kind": "step", "step": step["step"] + 1, "seconds": step["wall_s"], "tokens": tokens})
    found += [{"kind": "probe", "step": probe["step"], "selfname": probe["selfname"]} for probe in probes]
    return sorted(found, key=lambda one: (one["step"], one["kind"] == "probe"))


def peers(recipe: Path, folder: Path) -> Found:
    """The same of the peer, which ends at the probe that finds RATE."""
    path = os.pathsep.join((str(PACKAGES), os.environ.get("PYTHONPATH", "")))
    command = [sys.executable, "-m", "tests.bench.peer_process", str(recipe)]
    printed = finished(command, os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"})
    return [json.loads(line.removeprefix("RESULT")) for line in printed.splitlines() if line.startswith("RESULT")]


def speed_of(found: Found, warm_up: int) -> tuple[float, float]:
    """(response tokens/s, median seconds a step) once warm."""
    steps = [one for one in found if one["kind"] == "step"][warm_up:]
    seconds = [one["seconds"] for one in steps]
    return sum(one["tokens"] for one in steps) / sum(seconds), statistics.median(seconds)


def speed(name: str, folder: Path) -> None:
    differs, steps, warm_up, target = CONTEXTS[name]
    recipe = folder / "recipe.toml"
    settings = (*SETTINGS, *SPEED, f"run.steps={steps}", *differs)
    recipe.write_text(dump(load_recipe(ROOT / "cluster" / "recipes" / "N3.toml", settings)))
    (theirs, their_s), (own, own_s) = (speed_of(side(recipe, folder / "run"), warm_up) for side in (peers, ours))
    note = f"{name} context: {own:.3g} and {theirs:.3g} tokens/s, {own_s:.1f} and {their_s:.1f} s a step"
    Figure("response tokens/s over the peer's", own / theirs, target, note).say()


def until(found: Found, rate: float) -> tuple[float, int, float]:
    """(seconds, number of steps, self-name rate) at the first probe that finds `rate`, or at the last one."""
    seconds, steps, selfname = 0.0, 0, 0.0
    for one in found:
        if one["kind"] == "step":
            seconds, steps = seconds + one["seconds"], steps + 1
        elif (selfname := one["selfname"]) >= rate:
            break
    return seconds, steps, selfname


def time_to_rate(folder: Path) -> None:
    reached = {}
    for side in (peers, ours):
        # The peer stops at `probe.require`; our run would only fail for it.
        settings = (
            *SETTINGS,
            f"run.probe_every={PROBE_EVERY}",
            f"probe.require={RATE if side is peers else 0.0}",
        )
        recipe = folder / f"{side.__name__}.toml"
        recipe.write_text(dump(load_recipe(ROOT / "cluster" / "recipes" / "local-smoke.toml", settings)))
        reached[side.__name__] = until(side(recipe, folder / "run"), RATE)
    says = ", ".join(f"{name} {rate:.2f} after {steps} steps, {s:.0f} s" for name, (s, steps, rate) in reached.items())
    if any(rate < RATE for _, _, rate in reached.values()):
        says += f"; NOT both reached {RATE:.2f}"
    Figure(
        f"time to self-name {RATE:.2f} over the peer's", reached["ours"][0] / reached["peers"][0], "<= 0.4", says
    ).say()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="short, long, time; all by default")
    arguments = parser.parse_args()
    if not PACKAGES.is_dir():
        sys.exit(f"{PACKAGES}: found no such folder, expected the peer's packages, which `make bench` installs")
    for name in arguments.names or (*CONTEXTS, "time"):
        with tempfile.TemporaryDirectory() as folder:
            time_to_rate(Path(folder)) if name == "time" else speed(name, Path(folder))


if __name__ == "__main__":
    main()
