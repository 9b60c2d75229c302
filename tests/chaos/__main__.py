"""A seeded schedule of faults over small real runs, one fault a run, and a report of what became of each.

    make chaos                                        10 runs, seed 0; a table, and runs/chaos.json
    python -m tests.chaos --runs 3 --seed 7 --out runs/chaos.json

A run is well when it ended with status 0, after a resume where its driver was killed, learned from each group once and
left no process behind.
"""

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
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

STEPS, PROMPTS = 16, 2
SETTINGS = (
    f"run.steps={STEPS}", "run.max_policy_lag=1", "run.checkpoint_every=5", "student.num_engines=2",
    "faults.silent_s=5.0", "faults.store_s=20.0", "learner.step_deadline_s=60.0", "rollout.deadline_s=60.0",
)  # fmt: skip
ENGINES = ("student engine 0", "student engine 1", "teacher engine 0")
FAULTS = [
    *((name, number) for name in ENGINES for number in (signal.SIGKILL, signal.SIGSTOP)),
    *((f"{name} core", number) for name in ENGINES for number in (signal.SIGKILL, signal.SIGSTOP)),
    *((name, number) for name in ("learner", "rollout") for number in (signal.SIGKILL, signal.SIGSTOP)),
    ("driver", signal.SIGKILL),
]
LATEST_S = 20.0  # of a fault, after the first step


@dataclass(frozen=True)
class Outcome:
    """What became of one run. noticed_s, back_s: from the fault to the driver's lines of it, and of what stands again;
    None where the run did not need what was lost any more. resumed: by the harness, as only a person can."""

    seed: int
    target: str
    signal: str
    after_s: float
    status: int
    resumed: bool
    noticed_s: float | None
    back_s: float | None
    groups_once: bool
    trained_is_written: bool
    left_behind: int
    wall_s: float

    @property
    def is_well(self) -> bool:
        return self.status == 0 and self.groups_once and self.trained_is_written and not self.left_behind


def one(seed: int, model: Path, folder: Path) -> Outcome:
    """The run of this seed, in `folder`."""
    draw = random.Random(seed)
    (target, number), after_s = draw.choice(FAULTS), draw.uniform(0.0, LATEST_S)
    begun, arguments = time.monotonic(), small_arguments(folder, f"model.path={model}", *SETTINGS)
    with under_way(arguments) as run:
        metrics = folder / "metrics.jsonl"
        run.wait_until("the first step", metrics.exists)
        time.sleep(after_s)
        at = hit(run, target, number)
        status, said, _ = run.end()
        left = len(run.left_behind())
    noticed, back = (since(at, run, said) for said in (("; it is replaced", "start again"), ("serves", "resumed at")))
    resumed = status != 0 and target == "driver"
    if resumed:
        with under_way([*arguments, "--resume"]) as again:
            status, said, _ = again.end()
            back = since(at, again, ("resumed at",))
            left += len(again.left_behind())
    if status:
        print(said[-2000:], file=sys.stderr)
    manifest = Manifest(folder / "manifest.jsonl")
    counts = Counter(learned_groups(RunDir(folder)))
    expected = {f"{step:06d}-{slot:03d}" for step in range(STEPS) for slot in range(PROMPTS)}
    return Outcome(
        seed, target, number.name, after_s, status, resumed, noticed, back,
        counts.keys() == expected and set(counts.values()) == {1},
        manifest.trained() == set(manifest.written()) and len(lines(metrics)) == STEPS,
        left, time.monotonic() - begun,
    )  # fmt: skip


def hit(run: UnderWay, target: str, number: signal.Signals) -> float:
    """Sends the signal; returns when. Nothing where the run has ended."""
    run.processes()
    if target == "driver":
        run.process.send_signal(number)
    elif target in (found := run.processes()):
        found[target].send_signal(number)
    return time.monotonic()


def since(at: float, run: UnderWay, said: tuple[str, ...]) -> float | None:
    """Seconds from the moment to the first of the run's lines with one of these."""
    return next((moment - at for moment, line in run.lines if moment > at and any(one in line for one in said)), None)


def report(outcomes: list[Outcome], out: Path) -> None:
    """A table, and every figure as JSON."""
    table = Table("seed", "fault", "after", "noticed", "back", "resumed", "status", "once each", "left behind", "well")
    for found in outcomes:
        noticed, back = ("-" if seconds is None else f"{seconds:.1f} s" for seconds in (found.noticed_s, found.back_s))
        table.add_row(
            str(found.seed), f"{found.signal} {found.target}", f"{found.after_s:.1f} s", noticed, back,
            str(found.resumed), str(found.status), str(found.groups_once), str(found.left_behind), str(found.is_well),
        )  # fmt: skip
    Console().print(table)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps([asdict(found) | {"well": found.is_well} for found in outcomes], indent=2) + "\n")


def read(out: Path) -> list[Outcome]:
    """What `report` wrote."""
    return [Outcome(**{key: found[key] for key in found if key != "well"}) for found in json.loads(out.read_text())]


def main() -> int:
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=10)
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
            outcomes.append(one(seed, model, Path(place) / f"run-{seed}"))
            report(outcomes, arguments.out)
    return 0 if all(found.is_well for found in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
