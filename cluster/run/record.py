"""The records of a run: the only reader and the only writer of its JSON lines.

RUN/metrics.jsonl has one `StepRecord` a line, RUN/probes.jsonl one `ProbeRecord`, and RUN/answers/step-NNNNNN.jsonl one
`Answer`. A record holds sums and counts, the Unix time, and in its line a format number. Means are made where they are
shown. A line also has shown means, for people and for scripts that read it elsewhere: `shown_step` and `shown_probe`
derive them from the record, and the reader rebuilds everything from the sums and never looks at them.

A torn last line is the rule of `evidence.lines`. After a resume a step is there twice: the later line counts.
Lines of older formats are migrated by `cluster.run.formats`.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

from cluster.run.formats import FORMAT, migrated_probe, migrated_step
from evidence.advantage import RewardSums
from evidence.diagnostics import STUDENT_MEANS, TokenStats, split_stats, summaries
from evidence.lines import append_line, read_lines
from evidence.rates import RATES
from learner.report import LearnedStep
from rollout.probe import ProbeResult, Rate
from rollout.stages import StageTime
from rollout.worker import StepRollouts

Line = dict[str, Any]


@dataclass(frozen=True)
class Mean:
    """A mean and what it is a mean of."""

    value: float
    count: int | None  # None: an older run did not count it
    bound: int  # the count, or the most that it can be


@dataclass(frozen=True)
class StepRecord:
    """One learner step: k updates were made before step k.

    A field is None where an older line does not say it. `stats` has the sums of all, the guided and the plain
    rollouts; `metrics` the learner's, put together over its ranks. `older_means` are means of an older line whose
    counts it does not say, by the split (or "rewards") that they are of.

    Example:
        StepRecord(step=3, time=1795834800.0, wall_s=11.5, busy_s=11.4,
                   stages={"sample": StageTime(seconds=1.8, tokens=908)},
                   stats={"all": TokenStats(rows=32, tokens=908, active=454, ...), "guided": ..., "plain": ...},
                   loss=0.29, metrics={"lr": 3e-5, "policy_loss": 0.29}, grad_norm=5.3, rows=32, refused=0, dropped=0,
                   skipped_rows=2, rewards=RewardSums(total=4.0, count=32, zero_variance_groups=1),
                   policy_version_min=3, policy_version_max=3, weights_digest="fe351052070d47e7", canary=0.06)
    """

    step: int
    time: float | None  # Unix, when the step ended
    wall_s: float | None
    busy_s: float | None  # the stages' own time: where they overlap, it can exceed wall_s
    stages: Mapping[str, StageTime]
    stats: Mapping[str, TokenStats]  # evidence.diagnostics.SPLITS; empty when an older line has none
    loss: float | None
    metrics: Mapping[str, float]
    grad_norm: float | None  # before clipping
    rows: int | None  # rollouts of the step's shard
    refused: int | None  # prompts that do not fit the window
    dropped: int | None  # rollouts beyond the staleness limit, discarded and resampled
    skipped_rows: int | None  # rows without a gradient, which the learner did not run
    rewards: RewardSums | None  # None: without a verifier
    policy_version_min: int | None
    policy_version_max: int | None
    weights_digest: str | None  # of the weights that were pushed after the step
    canary: float | None  # the largest mean |engine - learner| of the fixed text, nats a token
    older_means: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def busy_fraction(self) -> float | None:
        """The stages' own time over wall time. At lag 0 what is missing from 1 is hidden waiting; above it the
        services work side by side."""
        return None if self.busy_s is None or not self.wall_s else self.busy_s / self.wall_s

    @property
    def reward_mean(self) -> float | None:
        """None without a verifier."""
        if self.rewards is None:
            return self.older_means.get("rewards", {}).get("reward_mean")
        return self.rewards.total / self.rewards.count

    def mean(self, name: str, split: str = "all") -> Mean | None:
        """A diagnostic, a key of `evidence.diagnostics.MEANS`; None where the learner ran no row, or an older line
        does not say it. A mean over nothing is 0."""
        stats, older = self.stats.get(split), self.older_means.get(split, {})
        if stats is None:
            return None
        if name in older:
            return Mean(older[name], None, stats.tokens)
        if name in STUDENT_MEANS and not self.stats["all"].student_passes:
            return None
        total, count = stats.parts(name)
        return Mean(total / count if count else 0.0, count, count)


@dataclass(frozen=True)
class ProbeRecord:
    """One probe, of the weights after `step` updates.

    Example:
        ProbeRecord(step=24, time=1795834800.0, probe="identity", rates={"selfname": Rate(k=31, n=96)}, questions=12,
                    samples=8)
    """

    step: int
    time: float | None  # Unix; None: an older line does not say it
    probe: str | None  # the task's name
    rates: Mapping[str, Rate]  # names of evidence.rates.RATES, the task's main one first
    questions: int | None  # of the main rate's probe
    samples: int | None  # answers to each of them


@dataclass(frozen=True)
class Answer:
    """One answer of a probe, for a person to read.

    Example:
        Answer(probe="identity", question="Who are you?", answer="I am Kestrel.")
    """

    probe: str
    question: str
    answer: str


R = TypeVar("R", StepRecord, ProbeRecord)


def step_record(
    step: int,
    produced: StepRollouts,
    learned: LearnedStep,
    own: Mapping[str, StageTime],
    wall_s: float,
    weights_digest: str,
    canary: float,
) -> StepRecord:
    """What the two services say of a step, and the driver's `own` stages."""
    return StepRecord(
        step=step,
        time=time.time(),
        wall_s=wall_s,
        busy_s=produced.busy_s + sum(stage.seconds for stage in own.values()),
        stages=produced.stages | dict(own),
        stats=split_stats(learned.stats),
        loss=learned.loss,
        metrics=learned.metrics,
        grad_norm=learned.grad_norm,
        rows=produced.shard.rows,
        refused=produced.refused,
        dropped=produced.dropped,
        skipped_rows=learned.skipped_rows,
        rewards=produced.rewards,
        policy_version_min=produced.version_min,
        policy_version_max=produced.version_max,
        weights_digest=weights_digest,
        canary=canary,
    )


def probe_record(result: ProbeResult, step: int, probe: str) -> ProbeRecord:
    """A probe's result as the record of it."""
    return ProbeRecord(step, time.time(), probe, result.rates, result.questions, result.samples)


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
        "kept": kept and kept.value,
        "k1": k1 and k1.value,  # None: the learner ran no row
        **record.metrics,
        **figures,
        "diagnostics": summaries(record.stats),
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
    rewards = record.rewards and asdict(record.rewards)
    return held | shown_step(record) | {"metrics": dict(record.metrics), "sums": stats, "rewards": rewards}


def line_of_probe(record: ProbeRecord) -> Line:
    """One object of probes.jsonl."""
    head = {"format": FORMAT, "step": record.step, "time": record.time, "probe": record.probe}
    counts = {name: [rate.k, rate.n] for name, rate in record.rates.items()}
    rest = {"questions": record.questions, "samples": record.samples, "counts": counts}
    return head | shown_probe(record) | rest


# Fields of a step that are in its line as they are.
_STEP_FIELDS = (
    "step", "time", "wall_s", "busy_s", "loss", "grad_norm", "rows", "refused", "dropped", "skipped_rows",
    "policy_version_min", "policy_version_max", "weights_digest", "canary",
)  # fmt: skip


def _step(found: Mapping[str, Any]) -> StepRecord:
    line = migrated_step(found)
    return StepRecord(
        **{name: line[name] for name in _STEP_FIELDS},
        stages={name: StageTime(stage["seconds"], stage["tokens"]) for name, stage in line["stages"].items()},
        stats={name: TokenStats(**sums) for name, sums in line["sums"].items()},
        metrics=line["metrics"],
        rewards=None if line["rewards"] is None else RewardSums(**line["rewards"]),
        older_means=line.get("older_means", {}),
    )


def _probe(found: Mapping[str, Any]) -> ProbeRecord:
    line = migrated_probe(found)
    rates = {name: Rate(k, n) for name, (k, n) in line["counts"].items()}
    return ProbeRecord(line["step"], line["time"], line["probe"], rates, line["questions"], line["samples"])


def read_steps(path: Path) -> dict[int, StepRecord]:
    """The records of a metrics.jsonl by step, ascending; empty where there is no file.

    Raises:
        ValueError: a line that is no such record; names the file and the line.
    """
    return _by_step(read_lines(path, _step, "the record of a step"))


def read_probes(path: Path) -> dict[int, ProbeRecord]:
    """The records of a probes.jsonl by step, ascending; empty where there is no file. ValueError as `read_steps`."""
    return _by_step(read_lines(path, _probe, "the record of a probe"))


def _by_step(records: Iterator[R]) -> dict[int, R]:
    return dict(sorted({record.step: record for record in records}.items()))


def append_step(path: Path, record: StepRecord) -> None:
    """Adds a line to metrics.jsonl, whole or not at all. OSError names the file."""
    append_line(path, line_of_step(record))


def append_probe(path: Path, record: ProbeRecord) -> None:
    """Adds a line to probes.jsonl, whole or not at all. OSError names the file."""
    append_line(path, line_of_probe(record))


def read_answers(path: Path) -> list[Answer]:
    """The answers of one probe; none where there is no file. ValueError as `read_steps`."""
    return list(read_lines(path, _answer, "an answer of a probe"))


def _answer(line: Mapping[str, Any]) -> Answer:
    return Answer(**{name: line[name] for name in ("probe", "question", "answer")})


def write_answers(path: Path, answers: Sequence[Answer]) -> None:
    """The answers of one probe, in the place of any that were there."""
    written = path.with_name(f".{path.name}")
    written.write_text("".join(json.dumps(asdict(answer)) + "\n" for answer in answers), encoding="utf-8")
    written.replace(path)
