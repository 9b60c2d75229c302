"""The faults of many runs in two tables: by whom they hit, and by run."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from tests.chaos.outcome import Fault, Outcome

HEAD = "| hit | by | faults | survived | noticed after | stands again after |\n|---|---|---|---|---|---|"
RUNS_HEAD = "| seed | run | faults | resumed by hand | minutes | commit | well |\n|---|---|---|---|---|---|---|"


def tables(outcomes: Sequence[Outcome]) -> str:
    """Seconds are medians, with the largest in brackets."""
    found = defaultdict[tuple[str, str], list[Fault]](list)
    for fault in (fault for outcome in outcomes for fault in outcome.faults):
        found[_part(fault.target), fault.signal].append(fault)
    rows = [_row(*key, found[key]) for key in sorted(found)]
    return "\n".join([total(outcomes), "", HEAD, *rows, "", RUNS_HEAD, *map(_run, outcomes), ""])


def total(outcomes: Sequence[Outcome]) -> str:
    """In one line."""
    faults = [fault for outcome in outcomes for fault in outcome.faults]
    survived, well = sum(fault.survived for fault in faults), sum(outcome.is_well for outcome in outcomes)
    return f"{len(faults)} faults, {survived} survived, in {len(outcomes)} runs, {well} of them well."


def _part(target: str) -> str:
    """Engines are alike: `student engine 1 core` is an engine's core."""
    pool, engine, rest = target.partition(" engine ")
    return f"engine: {rest.partition(' ')[2] or 'actor'}" if engine and pool in ("student", "teacher") else target


def _row(target: str, number: str, faults: Sequence[Fault]) -> str:
    survived = sum(fault.survived for fault in faults)
    times = (_times(faults, lambda fault: fault.noticed_s), _times(faults, lambda fault: fault.back_s))
    return f"| {target} | {number} | {len(faults)} | {survived} | {' | '.join(times)} |"


def _times(faults: Iterable[Fault], of: Callable[[Fault], float | None]) -> str:
    seconds = [found for fault in faults if (found := of(fault)) is not None]
    return f"{statistics.median(seconds):.1f} s ({max(seconds):.1f})" if seconds else "-"


def _run(outcome: Outcome) -> str:
    well = "yes" if outcome.is_well else "no"
    return (
        f"| {outcome.seed} | {outcome.kind} | {len(outcome.faults)} | {outcome.resumes} | {outcome.wall_s / 60:.1f} | "
        f"{outcome.commit[:7]} | {well} |"
    )
