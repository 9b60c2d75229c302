"""Formats of a run's lines: each migration turns a line of one format into one of the next.

Format 0, without a number, held means only. Their sums come back from the counts beside them: a share of n is a whole
number of n, and of any other mean the sum is taken that gives this mean again, to the last bit. What such a line does
not say is None: the time, the engine-learner mismatch, a reward's count (its mean stays, in `older_means`), and how
many tokens the learner ran in a step of which it skipped rows (agreement and k1 stay, in `older_means`).
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from evidence.diagnostics import MEANS, STUDENT_MEANS, TokenStats
from evidence.rates import RATES

FORMAT = 1  # of the lines that this version writes
Line = Mapping[str, Any]

_KEPT = (  # keys that mean in format 1 what they meant in format 0
    "wall_s", "loss", "grad_norm", "rows", "refused", "dropped", "skipped_rows", "policy_version_min",
    "policy_version_max", "weights_digest", "canary",
)  # fmt: skip
_LEARNERS = ("lr", "policy_loss", "anchor_kl", "clip_fraction")  # metrics of format 0
_WHOLE = {name for name, kind in get_type_hints(TokenStats).items() if kind is int}


def migrated_step(line: Line) -> Line:
    """The line of metrics.jsonl in today's format. ValueError names a format that is not known."""
    return _migrated(line, _STEP_MIGRATIONS)


def migrated_probe(line: Line) -> Line:
    """The line of probes.jsonl in today's format. ValueError names a format that is not known."""
    return _migrated(line, _PROBE_MIGRATIONS)


def _migrated(line: Line, migrations: Mapping[int, Callable[[Line], Line]]) -> Line:
    while (found := line.get("format", 0)) != FORMAT:
        if found not in migrations:
            raise ValueError(f"format: found {found!r}, expected at most {FORMAT}: a newer version wrote it")
        line = migrations[found](line)
    return line


def _step_from_0(line: Line) -> Line:
    groups = line.get("diagnostics", {})
    wall_s, busy = line.get("wall_s"), line.get("busy_fraction")
    older = {name: _uncounted(group, line) for name, group in groups.items()}
    if "reward_mean" in line:
        older["rewards"] = {key: line[key] for key in ("reward_mean", "zero_variance_groups")}
    return {
        "format": 1,
        "step": int(line["step"]),
        "time": None,
        **{name: line.get(name) for name in _KEPT},
        "busy_s": None if wall_s is None or busy is None else total_of(busy, wall_s),
        "stages": line.get("stages", {}),
        "metrics": {name: line[name] for name in _LEARNERS if name in line},
        "sums": {name: _sums(group, line) for name, group in groups.items()},
        "rewards": None,
        "mismatch": None,
        "older_means": {name: means for name, means in older.items() if means},
    }


def _sums(group: Mapping[str, float], line: Line) -> dict[str, float]:
    """Fields of `TokenStats`: counts first, since what follows is a mean over one of them."""
    sums: dict[str, float] = {"rows": int(group["rows"]), "tokens": int(group["tokens"])}
    ran = _student_tokens(group, line)
    if ran is not None:
        sums |= {"student_passes": 1, "student_tokens": ran}
    for mean, (total, count) in MEANS.items():
        if total not in sums and count in sums:
            found = total_of(group[mean], sums[count])
            sums[total] = round(found) if total in _WHOLE else found
    return sums


def _student_tokens(group: Mapping[str, float], line: Line) -> int | None:
    """How many tokens the learner ran: none was skipped where no row was."""
    if "student_tokens" in group:
        return int(group["student_tokens"])
    all_ran = "k1" in group and line.get("skipped_rows") == 0
    return int(group["tokens"]) if all_ran else None


def _uncounted(group: Mapping[str, float], line: Line) -> dict[str, float]:
    known = _student_tokens(group, line) is not None
    return {} if known else {name: group[name] for name in STUDENT_MEANS if name in group}


def total_of(mean: float, count: float) -> float:
    """The sum whose mean over `count` is `mean`, to the last bit where there is such a number."""
    if not count:
        return 0.0
    near = mean * count
    return next((t for t in (near, math.nextafter(near, math.inf), math.nextafter(near, -math.inf))
                 if t / count == mean), near)  # fmt: skip


def _probe_from_0(line: Line) -> Line:
    names = [name for name, rate in RATES.items() if name in line and line.get(rate.count)]
    sizes = {name: int(line[RATES[name].count]) for name in names}
    return {
        "format": 1,
        "step": int(line["step"]),
        "time": None,
        "probe": line.get("probe"),
        "questions": line.get("questions"),
        "samples": line.get("samples"),
        "counts": {name: [round(line[name] * n), n] for name, n in sizes.items()},
    }


_STEP_MIGRATIONS = {0: _step_from_0}
_PROBE_MIGRATIONS = {0: _probe_from_0}
