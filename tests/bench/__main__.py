"""Runs benchmarks, each in a process of its own, and makes one table and one JSON file of their figures.

    python -m tests.bench [NAME...] [--base REVISION] [--rounds N] [--out FILE.json]

With --base each is run in a checkout of that revision too, in turns, and the table has the ratios. Without --out the
file is a new one in runs/bench, named by time and commit. Exit 1 when a benchmark failed. A missed target is a figure
like any other: it is in the table and changes no exit code.
"""

import argparse
import datetime
import importlib.metadata
import json
import signal
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console
from rich.table import Table

from cluster.commands.doctor import PINS
from cluster.machine import machine_name
from tests.bench.pairs import Measured, checkout, commit_of, measure, to_json

NAMES = (
    "controller",
    "overlap",
    "group_order",
    "shard_io",
    "sampling",
    "scoring_sharing",
    "learner_step",
    "row_memory",
    "learner_growth",
    "push",
    "real_step",
    "start",
    "start_checks",
    "recovery",
    "outliving",
    "bfloat16_products",
    "many_rows",
    "page",
    "watching",
    "counting",
    "peer",
)
ROOT = Path(__file__).parents[2]


def versions() -> dict[str, str]:
    """Of the libraries that decide speed, as they are installed."""
    known = {dist.metadata["Name"]: dist.version for dist in importlib.metadata.distributions()}
    return {name: known.get(name) or known.get(f"{name}-cpu", "not installed") for name in PINS}


def about(base: Path | None) -> dict[str, Any]:
    """When, of which commits and on what the figures were found."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit_of(ROOT),
        "base": commit_of(base) if base else "",
        "machine": machine_name(),
        "versions": versions(),
    }


def asked() -> argparse.Namespace:
    """The command line's; its end with status 2 where it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all by default")
    parser.add_argument("--base", metavar="REVISION", default="", help="run each in a checkout of this too, in turns")
    parser.add_argument("--rounds", type=int, default=1, help="of each benchmark; 1 by default")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in NAMES]
    if unknown:
        parser.error(f"found benchmark {unknown[0]!r}, expected one of {', '.join(NAMES)}")
    if arguments.rounds < 1:
        parser.error(f"--rounds: found {arguments.rounds}, expected at least 1")
    return arguments


def main() -> int:
    arguments = asked()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing is left behind
    console, begun = Console(width=None if sys.stdout.isatty() else 140), time.monotonic()
    try:
        with checkout(ROOT, arguments.base) if arguments.base else nullcontext() as base:
            result = about(base)
            names = arguments.names or NAMES
            found = {name: measure(name, ROOT, base, arguments.rounds, console) for name in names}
    except ValueError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    result["seconds"] = round(time.monotonic() - begun)
    result["benchmarks"] = {name: to_json(measured) for name, measured in found.items()}
    named = f"{result['date'][:19].replace(':', '')}-{result['commit']}.json"
    out = arguments.out or ROOT / "runs" / "bench" / named
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    console.print(table_of(found, f"{result['machine']}, {result['commit']}, {result['date']}", result["base"]))
    console.print(f"{out}", soft_wrap=True)
    failed = [name for name, measured in found.items() if measured.has_failed]
    if failed:
        console.print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


def table_of(found: dict[str, Measured], title: str, base: str) -> Table:
    """base: the other checkout's commit; "" without one."""
    table = Table("benchmark", "figure", "value", "target", "", "note", title=title)
    if base:
        table.add_column(f"over {base}")
    for name, measured in found.items():
        for figure in measured.figures():
            ratios = measured.ratios(figure.name)
            spread = f" ({min(ratios):.3g} to {max(ratios):.3g})" if len(ratios) > 1 else ""
            pair = [f"{mean(ratios):.3g}{spread}" if ratios else ""] if base else []
            table.add_row(name, figure.name, f"{figure.value:.4g}", figure.target, figure.verdict, figure.note, *pair)
        table.add_section()
    return table


if __name__ == "__main__":
    sys.exit(main())
