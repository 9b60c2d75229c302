"""Runs benchmarks, each in a process of its own, and makes one table and one JSON file of their figures.

    python -m tests.bench [NAME...] [--out FILE.json]

Exit 1 when a benchmark failed. A missed target is a figure like any other: it is in the table and changes no exit code.
"""

import argparse
import datetime
import importlib.metadata
import json
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cluster.commands.doctor import PINS
from cluster.machine import machine_name
from tests.bench.figures import MARK, Figure, figures_in

NAMES = (
    "controller",
    "overlap",
    "group_order",
    "shard_io",
    "sampling",
    "scoring_sharing",
    "learner_step",
    "row_memory",
    "push",
    "real_step",
    "start_checks",
    "bfloat16_products",
    "many_rows",
    "page",
    "watching",
    "peer",
)
DEADLINE_S = 3600.0
ROOT = Path(__file__).parents[2]


def run(name: str, console: Console) -> list[Figure] | None:
    """A benchmark's figures; None when it failed, or took longer than the deadline."""
    console.rule(name)
    command = [sys.executable, "-m", f"tests.bench.{name}"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    deadline = threading.Timer(DEADLINE_S, process.kill)
    deadline.start()
    lines = []
    for line in process.stdout:
        lines.append(line)
        if not line.startswith(MARK):
            console.print(line, end="", markup=False, highlight=False, soft_wrap=True)
    code = process.wait()
    deadline.cancel()
    return figures_in(lines) if code == 0 else None


def versions() -> dict[str, str]:
    """Of the libraries that decide speed, as they are installed."""
    known = {dist.metadata["Name"]: dist.version for dist in importlib.metadata.distributions()}
    return {name: known.get(name) or known.get(f"{name}-cpu", "not installed") for name in PINS}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all by default")
    parser.add_argument("--out", type=Path, default=Path("runs/bench.json"))
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in NAMES]
    if unknown:
        parser.error(f"found benchmark {unknown[0]!r}, expected one of {', '.join(NAMES)}")
    console, begun = Console(width=None if sys.stdout.isatty() else 140), time.monotonic()
    found = {name: run(name, console) for name in arguments.names or NAMES}
    about = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine_name(),
        "versions": versions(),
        "seconds": round(time.monotonic() - begun),
    }
    figures = {name: [asdict(figure) for figure in part] if part is not None else None for name, part in found.items()}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(about | {"benchmarks": figures}, indent=1) + "\n")
    console.print(table_of(found, f"{about['machine']}, {about['date']}"))
    console.print(f"{arguments.out}", soft_wrap=True)
    failed = [name for name, part in found.items() if part is None]
    if failed:
        console.print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


def table_of(found: dict[str, list[Figure] | None], title: str) -> Table:
    table = Table("benchmark", "figure", "value", "target", "", "note", title=title)
    for name, figures in found.items():
        for figure in figures or []:
            table.add_row(name, figure.name, f"{figure.value:.4g}", figure.target, figure.verdict, figure.note)
        table.add_section()
    return table


if __name__ == "__main__":
    sys.exit(main())
