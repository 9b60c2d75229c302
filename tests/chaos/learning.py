"""A run whose engines are killed again and again, beside the same run undisturbed: what each has learned.

    python -m tests.chaos.learning RECIPE --out FOLDER [--kills 10] [--set table.key=value ...]

The kills are spread over the steps: an engine's actor, process and core in turns, the student's and the teacher's. Each
run has the machine to itself. FOLDER/killed and FOLDER/undisturbed are the runs; one that is there is not run again.
"""

import argparse
import signal
import sys
from itertools import cycle
from pathlib import Path

from cluster.config import load_recipe
from cluster.run.record import read_probes
from cluster.run.rundir import RunDir
from tests.faults import UnderWay, under_way
from tests.runs import lines

PARTS = ("", " process", " core")
ENGINES = ("student engine 0", "teacher engine 0")
END_S = 7200.0


def kill(run: UnderWay, folder: RunDir, moments: list[int]) -> None:
    """Kills part of an engine once each of these steps is done."""
    targets = cycle(f"{engine}{part}" for part in PARTS for engine in ENGINES)
    for moment, target in zip(moments, targets, strict=False):
        run.wait_until(f"step {moment}", lambda moment=moment: done(folder) >= moment, END_S)  # type: ignore[misc]
        run.send(target, signal.SIGKILL)
        print(f"after step {done(folder)}: {target} is killed", flush=True)


def done(folder: RunDir) -> int:
    return len(lines(folder.metrics)) if folder.metrics.exists() else 0


def learned(folder: RunDir) -> str:
    """The last probe's rates, each with its interval."""
    *_, last = read_probes(folder.probes).values()
    rates = ((name, rate.share, *rate.interval, rate.n) for name, rate in last.rates.items())
    said = (f"{name} {share:.2f} [{low:.2f}, {high:.2f}] of {n}" for name, share, low, high, n in rates)
    return f"step {last.step}: {'; '.join(said)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--set", dest="sets", action="append", default=[])
    arguments = parser.parse_args()
    sets = ["run.checkpoint_every=0", "probe.require=0", f"faults.max_restarts={arguments.kills}", *arguments.sets]
    steps = load_recipe(arguments.recipe, sets).run.steps
    moments = [round(steps * (place + 0.5) / arguments.kills) for place in range(arguments.kills)]
    for name, kills in (("killed", moments), ("undisturbed", [])):
        folder = RunDir(arguments.out / name)
        if not (folder.root / "ended.json").exists():
            words = ["run", str(arguments.recipe), "--run-dir", str(folder.root)]
            with under_way([*words, *(word for one in sets for word in ("--set", one))]) as run:
                kill(run, folder, kills)
                status, said, errors = run.end(END_S)
            if status:
                print(said[-2000:], errors[-2000:], file=sys.stderr)
                return 1
            print("\n".join(line for line in said.splitlines() if "replaced" in line or "serves again" in line))
        print(f"{name}: {learned(folder)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
