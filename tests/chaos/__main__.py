"""A seeded schedule of faults over small real runs, several a run, and a report of what became of each.

    make chaos                                        4 runs of 5 faults, seed 0; a table, and runs/chaos.json
    python -m tests.chaos --runs 3 --seed 7 --faults 5 --out runs/chaos.json

A run is well when it ended with status 0, after a resume where its driver was killed, learned from each group once and
left no process behind. One that ends before all of its faults have come has had fewer.
"""

import argparse
import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cluster.default_model import prepare_default_model
from cluster.run.replay import learned_groups
from cluster.run.rundir import RunDir
from evidence.manifest import Manifest
from tests.fakes import tiny_model
from tests.faults import UnderWay, under_way
from tests.runs import lines, small_arguments

STEPS, PROMPTS = 48, 2
SETTINGS = (
    f"run.steps={STEPS}", "run.max_policy_lag=1", "run.checkpoint_every=5", "student.num_engines=2",
    "faults.silent_s=5.0", "faults.store_s=20.0", "faults.max_restarts=20", "learner.step_deadline_s=60.0",
    "rollout.deadline_s=60.0",
)  # fmt: skip
ENGINES = ("student engine 0", "student engine 1", "teacher engine 0")
FAULTS = [
    *((name, number) for name in ENGINES for number in (signal.SIGKILL, signal.SIGSTOP)),
    *((f"{name} core", number) for name in ENGINES for number in (signal.SIGKILL, signal.SIGSTOP)),
    *((name, number) for name in ("learner", "rollout") for number in (signal.SIGKILL, signal.SIGSTOP)),
    ("driver", signal.SIGKILL),
]
METRICS = "metrics.jsonl"
END_S = 900.0
GAP_S = 25.0  # at most, from one fault to the next, whatever has become of the one before

Lines = list[tuple[float, str]]  # what a run said, each with its moment


@dataclass(frozen=True)
class Fault:
    """after_s: the first step. noticed_s, back_s: from the fault to the driver's lines of it, and of what stands again;
    None where the run did not need what was lost any more."""

    target: str
    signal: str
    after_s: float
    noticed_s: float | None
    back_s: float | None


@dataclass(frozen=True)
class Outcome:
    """What became of one run. resumes: by the harness, after a fault of the driver's, as only a person can."""

    seed: int
    status: int
    resumes: int
    groups_once: bool
    trained_is_written: bool
    left_behind: int
    wall_s: float
    faults: list[Fault]

    @property
    def is_well(self) -> bool:
        return self.status == 0 and self.groups_once and self.trained_is_written and not self.left_behind


def one(seed: int, model: Path, folder: Path, count: int) -> Outcome:
    """The run of this seed with up to `count` faults, in `folder`."""
    begun, draw, metrics = time.monotonic(), random.Random(seed), folder / METRICS
    arguments, left, resumes = small_arguments(folder, f"model.path={model}", *SETTINGS), 0, 0
    hits: list[Hit] = []
    everything: Lines = []
    while True:
        with under_way([*arguments, *(["--resume"] if resumes else [])]) as run:
            run.wait_until("the first step, or what stands", partial(goes_on, run, metrics, resumes))
            first = hits[0].first if hits else time.monotonic()
            is_killed = False
            while len(hits) < count and not is_killed and lasts(run, draw.uniform(0.0, GAP_S)):
                hits.append(hit(run, draw, first))
                is_killed = hits[-1].target == "driver"
            status, said, _ = run.end(END_S)
            left += len(run.left_behind())
            everything += run.lines
        if not is_killed:
            break
        resumes += 1
    if status:
        print(said[-2000:], file=sys.stderr)
    manifest = Manifest(folder / "manifest.jsonl")
    counts = Counter(learned_groups(RunDir(folder)))
    expected = {f"{step:06d}-{slot:03d}" for step in range(STEPS) for slot in range(PROMPTS)}
    return Outcome(
        seed, status, resumes, counts.keys() == expected and set(counts.values()) == {1},
        manifest.trained() == set(manifest.written()) and steps_of(metrics) == STEPS,
        left, time.monotonic() - begun, [told(one, everything) for one in hits],
    )  # fmt: skip


@dataclass(frozen=True)
class Hit:
    """A fault that has just been made. first: when the first step was there."""

    target: str
    number: signal.Signals
    at: float
    first: float


def steps_of(metrics: Path) -> int:
    return len(lines(metrics)) if metrics.exists() else 0


def goes_on(run: UnderWay, metrics: Path, resumes: int) -> bool:
    """Whether the run has made its first step, or is as far as before it was killed."""
    return "resumed at step" in run.said() or run.process.poll() is not None if resumes else metrics.exists()


def lasts(run: UnderWay, seconds: float) -> bool:
    """Waits; whether the run is still under way then."""
    try:
        run.process.wait(seconds)
    except subprocess.TimeoutExpired:
        return True
    return False


def hit(run: UnderWay, draw: random.Random, first: float) -> Hit:
    """Sends the first signal of a random order whose process is there."""
    found = run.processes()
    order = draw.sample(FAULTS, len(FAULTS))
    target, number = next(one for one in order if one[0] in found or one[0] == "driver")
    at = time.monotonic()
    (run.process if target == "driver" else found[target]).send_signal(number)
    return Hit(target, number, at, first)


def told(hit: Hit, said: Lines) -> Fault:
    """What the run's lines say of it. Where all services start again, a lost engine's successor is one of theirs."""
    name = hit.target.removesuffix(" core")
    noticed = since(hit.at, said, (rf"{name}.*; it is replaced", "the services start again"))
    back = since(hit.at, said, (f"{name} serves again", "resumed at step"))
    return Fault(hit.target, hit.number.name, hit.at - hit.first, noticed if hit.target != "driver" else None, back)


def since(at: float, said: Lines, patterns: tuple[str, ...]) -> float | None:
    """Seconds from the moment to the first line after it with one of these."""
    return next(
        (moment - at for moment, line in said if moment > at and any(re.search(one, line) for one in patterns)), None
    )


def report(outcomes: list[Outcome], out: Path) -> None:
    """A row a fault, and every figure as JSON."""
    table = Table("seed", "fault", "after", "noticed", "back", "the run", "resumes", "once each", "left behind", "well")
    for found in outcomes:
        of_run = [str(found.status), str(found.resumes), str(found.groups_once), str(found.left_behind)]
        for fault in found.faults:
            noticed, back = ("-" if one is None else f"{one:.1f} s" for one in (fault.noticed_s, fault.back_s))
            what = f"{fault.signal} {fault.target}"
            table.add_row(str(found.seed), what, f"{fault.after_s:.0f} s", noticed, back, *of_run, str(found.is_well))
    Console().print(table)
    faults = [fault for found in outcomes for fault in found.faults]
    well = sum(found.is_well for found in outcomes)
    Console().print(f"{len(faults)} faults in {len(outcomes)} runs, {well} of them well")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps([asdict(found) | {"well": found.is_well} for found in outcomes], indent=2) + "\n")


def read(out: Path) -> list[Outcome]:
    """What `report` wrote."""
    found = [{key: one[key] for key in one if key != "well"} for one in json.loads(out.read_text())]
    return [Outcome(**one | {"faults": [Fault(**fault) for fault in one["faults"]]}) for one in found]


def main() -> int:
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--faults", type=int, default=5, help="of a run, at most")
    parser.add_argument("--seed", type=int, default=0, help="of the first run; those after it count up")
    parser.add_argument("--out", type=Path, default=Path("runs/chaos.json"))
    parser.add_argument("--more", action="store_true", help="keep what --out holds; run the seeds that it lacks")
    arguments = parser.parse_args()
    outcomes = read(arguments.out) if arguments.more and arguments.out.is_file() else []
    with tempfile.TemporaryDirectory(prefix="edge-opd-chaos-") as place:
        tokenizer, folder = prepare_default_model(), Path(place) / "model"
        model = tiny_model(
            folder, vocab=49152, dtype="bfloat16", tokenizer_from=tokenizer, hidden_size=128, head_dim=32
        )
        for seed in range(arguments.seed, arguments.seed + arguments.runs):
            if seed in {found.seed for found in outcomes}:
                continue
            outcomes.append(one(seed, model, Path(place) / f"run-{seed}", arguments.faults))
            report(outcomes, arguments.out)
    return 0 if all(found.is_well for found in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
