"""A seeded schedule of faults over small real runs, several a run, and a report of what became of each.

    make chaos                                        4 runs of 5 faults, seed 0; a table, and runs/chaos.json
    python -m tests.chaos --runs 3 --seed 7 --faults 5 --out runs/chaos.json

Of four seeds in turn two are runs on this host, one has engines of two workers, and one is on three hosts, which is
left out without root. A run is well when it ended with status 0, after a resume where its driver was killed or a fault
came amid its start, learned from each group once, said after each fault what its engines hold, and left no process
behind. One that ends before all of its faults have come has had fewer.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cluster.default_model import prepare_default_model
from tests.bench.pairs import commit_of
from tests.chaos.outcome import Fault, Outcome, read
from tests.chaos.places import Place, can_be, place_of
from tests.chaos.schedule import BEGINS, PARALLEL, START, Planned, kind_of, schedule
from tests.chaos.summary import total
from tests.chaos.verdict import Hit, fault_of, learned_once, records_of, trained_is_written
from tests.fakes import tiny_model
from tests.faults import UnderWay, title_of, under_way
from tests.runs import ROOT, small_arguments

STEPS, PROMPTS, LAG = 48, 2, 1
SETTINGS = (
    f"run.steps={STEPS}", f"run.max_policy_lag={LAG}", "run.checkpoint_every=5", "student.num_engines=2",
    "probe.samples=4", "probe.max_tokens=24", "faults.silent_s=5.0", "faults.store_s=20.0", "faults.max_restarts=20",
    "learner.step_deadline_s=60.0", "rollout.deadline_s=60.0", "weights.deadline_s=40.0",
    "student.start_deadline_s=150.0", "teacher.start_deadline_s=150.0", "learner.start_deadline_s=150.0",
)  # fmt: skip
OF_A_KIND = {PARALLEL: ("student.tensor_parallel_size=2",)}
END_S = 900.0


def one(seed: int, model: Path, folder: Path, count: int) -> Outcome:
    """The run of this seed with up to `count` faults, in `folder`."""
    kind, began = kind_of(seed), time.monotonic()
    arguments = small_arguments(folder, f"model.path={model}", *SETTINGS, *OF_A_KIND.get(kind, ()))
    left, resumes, hits, lines = list[str](), 0, list[Hit](), list[tuple[float, str]]()
    with place_of(kind) as place:
        plan = schedule(seed, count)
        while True:
            again = ["--resume=auto"] if resumes else []
            with under_way([*arguments, *again], place.through) as run:
                made = faults_of(run, place, plan[len(hits) :], folder, began)
                hits += made
                status, said, errors = run.end(END_S)
                place.end_stopped()
                left += map(title_of, run.left_behind())
                lines += run.lines
            # Only a fault of this attempt is a reason for another.
            if not (status and made and (made[-1].target == "driver" or made[-1].moment == START) and resumes < count):
                break
            resumes += 1
    if status:
        print(said[-2000:], errors[-2000:], file=sys.stderr)
    faults = [fault_of(hit, lines, records_of(folder), status, LAG) for hit in hits]
    once, written = learned_once(folder, STEPS, PROMPTS), trained_is_written(folder, STEPS)
    return Outcome(seed, kind, status, resumes, once, written, left, time.monotonic() - began, faults, commit_of(ROOT))


def faults_of(run: UnderWay, place: Place, plan: Sequence[Planned], folder: Path, began: float) -> list[Hit]:
    """Those that come while the run is under way, the last of which may end it."""
    hits, before = list[Hit](), len(records_of(folder))
    for planned in plan:
        run.wait_until(planned.moment, partial(has_begun, planned.moment, run, folder, before))
        if not lasts(run, planned.after_s):
            break
        hits.append(hit(run, place, planned, began))
        if hits[-1].target == "driver":
            break
    return hits


def has_begun(moment: str, run: UnderWay, folder: Path, before: int) -> bool:
    """Whether the moment is there, in a run that had made `before` steps when it was started, or the run has ended."""
    if run.process.poll() is not None:
        return True
    if moment == START:
        return bool(run.processes())
    if before:
        return "resumed at step" in run.said() or len(records_of(folder)) > before
    return (folder / BEGINS[moment]).exists()


def lasts(run: UnderWay, seconds: float) -> bool:
    """Waits; whether the run is still under way then."""
    try:
        run.process.wait(seconds)
    except subprocess.TimeoutExpired:
        return True
    return False


def hit(run: UnderWay, place: Place, planned: Planned, began: float) -> Hit:
    """Sends the first signal of the plan's whose process is there."""
    found = {**run.processes(), **place.raylets(), "driver": run.process}
    target, number = next(one for one in planned.order if one[0] in found)
    made = Hit(target, number, planned.moment, time.monotonic(), time.time(), began)
    found[target].send_signal(number)
    if (target, number) == ("raylet", signal.SIGKILL):
        place.mend(found[target])
    return made


def report(outcomes: list[Outcome], out: Path) -> None:
    """A row a fault, and every figure as JSON."""
    columns = "seed", "run", "fault", "at", "survived", "noticed", "back", "once each", "proven", "left behind", "well"
    table = Table(*columns)
    for found in outcomes:
        of_run = str(found.groups_once), str(len(found.left_behind)), str(found.is_well)
        for fault in found.faults:
            table.add_row(str(found.seed), found.kind, *shown(fault), of_run[0], yes(fault.proven), *of_run[1:])
    Console().print(table)
    Console().print(total(outcomes))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps([asdict(found) | {"well": found.is_well} for found in outcomes], indent=2) + "\n")


def shown(fault: Fault) -> list[str]:
    noticed, back = ("-" if one is None else f"{one:.1f} s" for one in (fault.noticed_s, fault.back_s))
    at = f"{fault.moment}, {fault.after_s:.0f} s"
    return [f"{fault.signal} {fault.target}", at, yes(fault.survived), noticed, back]


def yes(so: bool | None) -> str:
    return "-" if so is None else str(so)


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
            if not can_be(kind_of(seed)):
                print(f"seed {seed}: {kind_of(seed)} need root and iproute2: left out", file=sys.stderr)
                continue
            outcomes.append(one(seed, model, Path(place) / f"run-{seed}", arguments.faults))
            outcomes.sort(key=lambda found: found.seed)
            report(outcomes, arguments.out)
    return 0 if all(found.is_well for found in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
