"""The records of a run: the only reader and the only writer of its JSON lines, and of RUN/gap.json, which is one `Gap`.

RUN/metrics.jsonl has one `StepRecord` a line, RUN/probes.jsonl one `ProbeRecord`, RUN/answers/step-NNNNNN.jsonl one
`Answer`, and RUN/memory.jsonl one `MemoryPlan` a start. A record holds sums and counts, the Unix time, and in its line
a format number. Means are made where they are shown. A line also has shown means, for people and for scripts that read
it elsewhere: `shown_step` and `shown_probe` derive them from the record, and the reader rebuilds everything from the
sums and never looks at them.

A torn last line is the rule of `evidence.lines`. After a resume a step is there twice: the later line counts.
Lines of older formats are migrated by `cluster.run.formats`.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

from cluster.run.checked import rates_of, require_finite, require_numbers, require_some, require_whole
from cluster.run.figures import (
    END,
    STEP,
    Answer,
    Gap,
    Mean,
    ProbeRecord,
    StepRecord,
    probe_record,
    step_record,
)
from cluster.run.formats import FORMAT, migrated_probe, migrated_step
from cluster.run.planned import EnginePlan, MemoryPlan
from evidence.advantage import RewardSums
from evidence.diagnostics import TokenStats, summaries
from evidence.files import write_whole
from evidence.lines import append_line, from_json, read_lines
from evidence.mismatch import Mismatch
from evidence.rates import RATES
from rollout.stages import StageTime
from rollout.tasks.boxed_pool import Verdicts

__all__ = [
    "END", "STEP", "Answer", "EnginePlan", "Gap", "Mean", "MemoryPlan", "ProbeRecord", "StepRecord", "append_plan",
    "append_probe", "append_step", "line_of_plan", "line_of_probe", "line_of_step", "probe_record", "read_answers",
    "read_gap", "read_notes", "read_plans", "read_probes", "read_steps",
    "shown_probe", "shown_step", "step_record", "write_answers", "write_gap",
]  # fmt: skip

Line = dict[str, Any]
R = TypeVar("R", StepRecord, ProbeRecord)


def shown_step(record: StepRecord) -> Line:
    """The means of a step's line, and its metrics by their names. Only lines of this format have them all."""
    k1, kept = record.mean("k1"), record.mean("kept")
    rewards = record.rewards
    figures = {} if rewards is None else {
        "reward_mean": record.reward_mean, "zero_variance_groups": rewards.zero_variance_groups
    }  # fmt: skip
    return {
        "busy_fraction": record.busy_fraction,
        "stages": {name: asdict(stage) | {"tokens_per_s": stage.tokens_per_s} for name, stage in record.stages.items()},
        "push_parts": record.push_parts and dict(record.push_parts),
        "kept": kept and kept.value,
        "k1": k1 and k1.value,  # None: the learner ran no row
        **record.metrics,
        **figures,
        **(record.mismatch or Mismatch()).means(),
        "diagnostics": summaries(record.stats) if record.stats else {},
    }


def shown_probe(record: ProbeRecord) -> Line:
    """The rates of a probe's line, their counts of answers and their 95% intervals as [low, high]."""
    shown: Line = {}
    for count, names in groupby(record.rates, key=lambda name: RATES[name].count):
        of_one_count = {name: record.rates[name] for name in names}
        shown |= {name: rate.share for name, rate in of_one_count.items()}
        shown[count] = next(iter(of_one_count.values())).n
    return shown | {"intervals": {name: list(rate.interval) for name, rate in record.rates.items()}}


def line_of_step(record: StepRecord) -> Line:
    """One object of metrics.jsonl."""
    held = {"format": FORMAT} | {name: getattr(record, name) for name in _STEP_FIELDS}
    stats = {name: asdict(part) for name, part in record.stats.items()}
    sums = {
        "metrics": dict(record.metrics),
        "sums": stats,
        "rewards": record.rewards and asdict(record.rewards),
        "mismatch": record.mismatch and asdict(record.mismatch),
        **{name: getattr(record, name) for name in _YOUNGER},
        "peak_bytes": record.peak_bytes and dict(record.peak_bytes),
        "verdicts": record.verdicts and asdict(record.verdicts),
    }
    return held | shown_step(record) | sums | ({"older_means": record.older_means} if record.older_means else {})


def line_of_probe(record: ProbeRecord) -> Line:
    """One object of probes.jsonl."""
    head = {"format": FORMAT, "step": record.step, "time": record.time, "probe": record.probe}
    counts = {name: [rate.k, rate.n] for name, rate in record.rates.items()}
    judged = record.verdicts and asdict(record.verdicts)
    rest = {"questions": record.questions, "samples": record.samples, "counts": counts, "verdicts": judged}
    return head | shown_probe(record) | rest | {"weights": record.weights}


# Fields of a step that are in its line as they are.
_STEP_FIELDS = (
    "step", "time", "wall_s", "busy_s", "loss", "grad_norm", "rows", "refused", "dropped", "skipped_rows",
    "policy_version_min", "policy_version_max", "weights_digest", "canary",
)  # fmt: skip


PLAN_FORMAT = 1  # of memory.jsonl, whose lines change apart from those of the steps
_YOUNGER = (
    "truncated",
    "canary_bound",
    "nonfinite_rollouts",
    "nonfinite_updates",
    "pace_s",
    "pushed_bytes",
)  # than their line's format


def _step(found: Mapping[str, Any]) -> StepRecord:
    line = migrated_step(found)
    younger: Line = {name: line.get(name) for name in _YOUNGER}
    parts, peaks = line.get("push_parts"), line.get("peak_bytes")
    require_numbers({name: line[name] for name in _STEP_FIELDS if name != "weights_digest"} | younger)
    require_whole("step", line["step"])
    require_finite({name: line.get(name) for name in ("time", "wall_s", "busy_s", "pace_s")})
    for name, stage in line["stages"].items():
        require_finite({f"stages.{name}.{key}": stage[key] for key in ("seconds", "tokens")}, none=False)
    held: Line = {"metrics": line["metrics"], "push_parts": parts, "rewards": line["rewards"]}
    held |= {"mismatch": line["mismatch"], "verdicts": line.get("verdicts")} | {
        f"sums.{name}": sums for name, sums in line["sums"].items()
    }
    for name, values in held.items():
        require_numbers({f"{name}.{key}": value for key, value in (values or {}).items()}, none=False)
    require_some({f"peak_bytes.{kind}": ranks for kind, ranks in (peaks or {}).items()})
    require_some({"rewards.count": line["rewards"]["count"]} if line["rewards"] else {})
    for kind, ranks in (peaks or {}).items():
        require_numbers({f"peak_bytes.{kind}[{rank}]": most for rank, most in enumerate(ranks)}, none=False)
    return StepRecord(
        **{name: line[name] for name in _STEP_FIELDS},
        stages={name: StageTime(stage["seconds"], stage["tokens"]) for name, stage in line["stages"].items()},
        stats={name: TokenStats(**sums) for name, sums in line["sums"].items()},
        metrics=dict(line["metrics"]),
        rewards=None if line["rewards"] is None else RewardSums(**line["rewards"]),
        mismatch=None if line["mismatch"] is None else Mismatch(**line["mismatch"]),
        **younger,
        verdicts=Verdicts(**line["verdicts"]) if line.get("verdicts") else None,
        push_parts=parts,
        peak_bytes=peaks,
        older_means=line.get("older_means", {}),
    )


def _probe(found: Mapping[str, Any]) -> ProbeRecord:
    line = migrated_probe(found)
    require_numbers({name: line[name] for name in ("step", "time", "questions", "samples")})
    require_whole("step", line["step"])
    require_finite({"time": line["time"]})
    require_numbers({f"verdicts.{key}": value for key, value in (line.get("verdicts") or {}).items()}, none=False)
    counted = rates_of("counts", line["counts"])
    verdicts = Verdicts(**line["verdicts"]) if line.get("verdicts") else None
    if (weights := line.get("weights")) not in (STEP, END, None):
        raise ValueError(f"weights: found {weights!r}, expected {STEP!r} or {END!r}")
    asked = line["questions"], line["samples"]
    return ProbeRecord(line["step"], line["time"], line["probe"], counted, *asked, verdicts, weights)


def read_steps(path: Path) -> dict[int, StepRecord]:
    """The records of a metrics.jsonl by step, ascending; empty where there is no file.

    Raises:
        ValueError: a line that is no such record; names the file and the line.
    """
    return _by_step(read_lines(path, _step, "the record of a step"))


def read_probes(path: Path, own: bool = False) -> dict[int, ProbeRecord]:
    """The records of a probes.jsonl by step, ascending; empty where there is no file. ValueError as `read_steps`.

    A probe of fewer steps than one before it is of a run that was resumed there: what stood beyond is void.

    own: of each step's own weights, without that of the weights that the run ends with, which counts otherwise.
    """
    standing: list[ProbeRecord] = []
    for record in read_lines(path, _probe, "the record of a probe"):
        standing = [*(one for one in standing if one.step <= record.step), record]
    return _by_step(record for record in standing if not own or record.weights != END)


def _by_step(records: Iterable[R]) -> dict[int, R]:
    return dict(sorted({record.step: record for record in records}.items()))


def append_step(path: Path, record: StepRecord) -> None:
    """Adds a line to metrics.jsonl, whole or not at all. OSError names the file."""
    append_line(path, line_of_step(record))


def append_probe(path: Path, record: ProbeRecord) -> None:
    """Adds a line to probes.jsonl, whole or not at all. OSError names the file."""
    append_line(path, line_of_probe(record))


def line_of_plan(plan: MemoryPlan) -> Line:
    """One object of memory.jsonl."""
    return {"format": PLAN_FORMAT} | asdict(plan)


def append_plan(path: Path, plan: MemoryPlan) -> None:
    """Adds a line to memory.jsonl, whole or not at all. OSError names the file."""
    append_line(path, line_of_plan(plan))


def read_plans(path: Path) -> list[MemoryPlan]:
    """The plans of a run's starts in order; none where there is no file. ValueError as `read_steps`."""
    return list(read_lines(path, _plan, "the memory plan of a run's start"))


def _plan(line: Mapping[str, Any]) -> MemoryPlan:
    if line["format"] != PLAN_FORMAT:
        raise ValueError(f"format: found {line['format']!r}, expected {PLAN_FORMAT}: a newer version wrote it")
    require_numbers({name: line[name] for name in ("time", "micro_batch_tokens")})
    engines = {pool: EnginePlan(**plan) for pool, plan in line["engines"].items()}
    for pool, plan in line["engines"].items():
        require_numbers({f"engines.{pool}.{name}": value for name, value in plan.items()})
    said, sleep = tuple(str(one) for one in line["said"]), bool(line["engines_sleep"])
    shared = bool(line.get("colocated", False))  # older lines do not say it
    return MemoryPlan(line["time"], str(line["device"]), line["micro_batch_tokens"], engines, sleep, said, shared)


def read_answers(path: Path) -> list[Answer]:
    """The answers of one probe; none where there is no file. ValueError as `read_steps`."""
    return list(read_lines(path, _answer, "an answer of a probe"))


def _answer(line: Mapping[str, Any]) -> Answer:
    return Answer(**{name: line[name] for name in ("probe", "question", "answer")})


def write_answers(path: Path, answers: Sequence[Answer]) -> None:
    """The answers of one probe, in the place of any that were there."""
    write_whole(path, "".join(json.dumps(asdict(answer)) + "\n" for answer in answers))


def write_gap(path: Path, gap: Gap) -> None:
    """In the place of any that was there."""
    rates = {name: {key: [r.k, r.n] for key, r in getattr(gap, name).items()} for name in ("teacher", "base")}
    of = {"probe": gap.probe, "questions": gap.questions}
    write_whole(path, json.dumps({"format": 1, "time": gap.time} | of | rates) + "\n")


def read_gap(path: Path) -> Gap | None:
    """None where there is no file: an older run. ValueError names a file that is none."""
    if not path.is_file():
        return None
    try:
        found = from_json(path.read_text(encoding="utf-8"))
        teacher, base = (rates_of(name, found[name]) for name in ("teacher", "base"))
        if not teacher.keys() <= base.keys():
            raise ValueError(f"base: found {', '.join(base)}, expected {', '.join(teacher)}")
        probe = str(found["probe"])
        asked = "probe" if probe == "identity" else "training"  # where an older run does not say it
        return Gap(float(found["time"]), probe, teacher, base, str(found.get("questions", asked)))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: found no gap ({error}), expected what a run wrote") from None


def read_notes(path: Path) -> list[str]:
    """What the start said of a run's prompts, of its inputs.json; none of an older run. ValueError names a damaged
    file."""
    if not path.is_file():
        return []
    try:
        return [str(note) for note in from_json(path.read_bytes()).get("notes", [])]
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: found no inputs of a run ({error}), expected what its start wrote") from None
