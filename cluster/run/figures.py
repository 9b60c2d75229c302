"""What a run records, typed: sums and counts of one step and of one probe, and a probe's answers.

A field's annotation says its unit and its meaning: docs/metrics.md is made of them (`cluster.observe.metrics_page`).
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from evidence.advantage import RewardSums
from evidence.diagnostics import STUDENT_MEANS, TokenStats, split_stats
from evidence.mismatch import Mismatch
from evidence.rates import RATES
from learner.report import PARTS, LearnedStep
from rollout.probe import ProbeResult, Rate
from rollout.stages import StageTime, StepTime
from rollout.tasks.boxed_pool import Verdicts

if TYPE_CHECKING:  # a record opens where nothing runs
    from rollout.worker import StepRollouts

HELP = (
    "another rollout.context_position, or other words in the context, such as how an answer begins "
    "(`edge-opd gap` shows each)"
)


@dataclass(frozen=True)
class Pushed:
    """The weights that the engines hold."""

    digest: str
    canary: float  # the largest difference from the learner over the engines, in nats a token
    bound: float | None = None  # beyond which the run stops
    seconds: Mapping[str, float] = field(default_factory=dict)  # of the push, by its parts
    num_bytes: int | None = None  # given to the transport


@dataclass(frozen=True)
class Mean:
    """A mean and what it is a mean of."""

    value: float
    count: int | None  # None: an older run did not count it
    bound: int  # the count, or the most that it can be


@dataclass(frozen=True)
class StepRecord:
    """One learner step: k updates were made before step k.

    A field is None where an older line does not say it. `older_means` are means of an older line whose counts it does
    not say, by the split (or "rewards") that they are of.

    Example:
        StepRecord(step=3, time=1795834800.0, wall_s=11.5, busy_s=11.4,
                   stages={"sample": StageTime(seconds=1.8, tokens=908)},
                   stats={"all": TokenStats(rows=32, tokens=908, active=454, ...), "guided": ..., "plain": ...},
                   loss=0.29, metrics={"lr": 3e-5, "policy_loss": 0.29}, grad_norm=5.3, rows=32, refused=0, dropped=0,
                   skipped_rows=2, rewards=RewardSums(total=4.0, count=32, zero_variance_groups=1),
                   policy_version_min=3, policy_version_max=3, weights_digest="fe351052070d47e7", canary=0.06,
                   mismatch=Mismatch(tokens=454, k3=0.02, abs_difference=4.1))
    """

    step: Annotated[int, "steps", "learner steps before this one"]
    time: Annotated[float | None, "s", "Unix time at which the step ended"]
    wall_s: Annotated[float | None, "s", "wall time of the step"]
    busy_s: Annotated[float | None, "s", "the stages' own time; more than wall_s where they overlap"]
    stages: Annotated[Mapping[str, StageTime], "", "the step's stages by name"]
    stats: Annotated[Mapping[str, TokenStats], "", "sums over all, the guided and the plain rollouts"]
    loss: Annotated[float | None, "nats", "of the first update, over all ranks"]
    metrics: Annotated[Mapping[str, float], "", "the learner's metrics, put together over its ranks"]
    grad_norm: Annotated[float | None, "", "the gradient's global norm before clipping"]
    rows: Annotated[int | None, "rollouts", "in the step's shard"]
    refused: Annotated[int | None, "prompts", "that do not fit the window"]
    dropped: Annotated[int | None, "rollouts", "beyond the staleness limit, discarded and resampled"]
    skipped_rows: Annotated[int | None, "rollouts", "without a gradient, which the learner did not run"]
    rewards: Annotated[RewardSums | None, "", "the verifier's rewards; null without a verifier"]
    policy_version_min: Annotated[int | None, "steps", "the oldest version that a token was sampled from"]
    policy_version_max: Annotated[int | None, "steps", "the newest version that a token was sampled from"]
    weights_digest: Annotated[str | None, "", "of the weights that were pushed after the step"]
    canary: Annotated[float | None, "nats", "largest mean |engine - learner| on a fixed text, a token"]
    mismatch: Annotated[Mismatch | None, "", "engine and learner on plain rows that ran; null if the teacher sampled"]
    truncated: Annotated[int | None, "rollouts", "cut at rollout.max_response_tokens"] = None
    canary_bound: Annotated[float | None, "nats", "the canary beyond which the run stops"] = None
    verdicts: Annotated[Verdicts | None, "", "answers put to the verifier's processes since the step before"] = None
    nonfinite_rollouts: Annotated[int | None, "rollouts", "left out: a log-prob is not finite"] = None
    nonfinite_updates: Annotated[int | None, "updates", "left out: the gradient is not finite"] = None
    push_parts: Annotated[Mapping[str, float] | None, "s", "of the push after the step, by part"] = None
    pushed_bytes: Annotated[int | None, "bytes", "of the push after the step, given to the transport once"] = None
    pace_s: Annotated[float | None, "s", "mean time of a step of this process, with probes and checkpoints"] = None
    peak_bytes: Annotated[Mapping[str, Sequence[int]] | None, "bytes", "of the learner, by kind and rank"] = None
    older_means: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def busy_fraction(self) -> float | None:
        """The stages' own time over wall time. At lag 0 what is missing from 1 is hidden waiting."""
        return None if self.busy_s is None or not self.wall_s else self.busy_s / self.wall_s

    @property
    def learner_parts(self) -> dict[str, float]:
        """Seconds of the parts of the learner's step, keys of `learner.report.PARTS`; none in older lines."""
        found = {part: self.metrics.get(f"{part}_s", math.nan) for part in PARTS}
        return {part: seconds for part, seconds in found.items() if math.isfinite(seconds)}

    @property
    def reward_mean(self) -> float | None:
        """None without a verifier."""
        if self.rewards is None:
            return self.older_means.get("rewards", {}).get("reward_mean")
        return self.rewards.total / self.rewards.count

    def left_s(self, planned: int) -> float | None:
        """Seconds to the last of `planned` steps; None where an older line has no time."""
        pace = self.wall_s if self.pace_s is None else self.pace_s  # the former in older lines
        return None if pace is None else pace * (planned - self.step - 1)

    def left(self, planned: int) -> str:
        """The same for people, such as 11:27, and from an hour on 1:11:27."""
        minutes, seconds = divmod(int(self.left_s(planned) or 0.0), 60)
        return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"

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


STEP, END = "step", "end"  # whose weights a probe is of: those after its step, or those that the run ends with


@dataclass(frozen=True)
class ProbeRecord:
    """One probe after `step` updates. The weights that a run ends with have theirs beside that of its last step's.

    Example:
        ProbeRecord(step=24, time=9.0, probe="identity", rates={"selfname": Rate(k=31, n=96)}, questions=12, samples=8)
    """

    step: Annotated[int, "steps", "learner steps before the probe"]
    time: Annotated[float | None, "s", "Unix time at which the probe ended"]
    probe: Annotated[str | None, "", "the task's name"]
    rates: Annotated[Mapping[str, Rate], "", "the task's rates by name, its main one first"]
    questions: Annotated[int | None, "questions", "that the main rate is of"]
    samples: Annotated[int | None, "answers", "to each of these questions"]
    verdicts: Annotated[Verdicts | None, "", "answers put to the verifier's processes; null where none was"] = None
    weights: Annotated[str | None, "", "step: its step's; end: those that the run ends with; null: either"] = None

    def ends(self, planned: int) -> bool:
        """Whether it is the last probe of a run of `planned` steps. An older line is taken for it at the last step."""
        return self.weights == END or (self.weights is None and self.step == planned)

    def is_early(self, planned: int) -> bool:
        """Whether a run of `planned` steps ended with it before the last of them (`probe.patience`)."""
        return self.weights == END and self.step < planned


@dataclass(frozen=True)
class Gap:
    """The rates of the teacher with the context, and of the base without it, over the same questions.

    Example:
        Gap(time=1795834800.0, probe="identity", teacher={"selfname": Rate(k=33, n=96)}, base={"selfname": Rate(0, 96)})
    """

    time: Annotated[float, "s", "Unix time at which it was measured"]
    probe: Annotated[str, "", "the task's name"]
    teacher: Annotated[Mapping[str, Rate], "", "with the context, the task's main rate first"]
    base: Annotated[Mapping[str, Rate], "", "without it"]
    questions: Annotated[str, "", "`probe`, the probe's own, or `training`, of the training prompts"] = "probe"

    @property
    def is_of_probe(self) -> bool:
        """Whether the rates are over the questions that the probe asks, so that they can stand beside its rates."""
        return self.questions == "probe"

    @property
    def of(self) -> str:
        """What heads its rates in a table."""
        return "teacher" if self.is_of_probe else "teacher, training questions"

    @property
    def main(self) -> str:
        """The name of the task's main rate."""
        return next(iter(self.teacher))

    @property
    def is_zero(self) -> bool:
        """Whether the teacher shows no more of it than the base."""
        return self.teacher[self.main].share <= self.base[self.main].share

    def line(self) -> str:
        """Every rate, the teacher's beside the base's."""
        shown = (
            f"{RATES[name].short} {rate.share:.2f} ({self.base[name].share:.2f})" for name, rate in self.teacher.items()
        )
        answers = f"{self.teacher[self.main].n} answers{'' if self.is_of_probe else ' to training questions'}"
        return f"gap: teacher with the context (base without it), {answers}: {'  '.join(shown)}"

    def warning(self) -> str:
        """What to do where there is nothing to learn; empty where there is."""
        if not self.is_zero:
            return ""
        told, base = self.teacher[self.main], self.base[self.main]
        return (
            f"gap: found {RATES[self.main].label} in {told.share:.2f} of the teacher's {told.n} answers with the "
            f"context and in {base.share:.2f} without it, expected more with it: there is nothing to learn. Try {HELP}"
        )


@dataclass(frozen=True)
class Answer:
    """One answer of a probe, for a person to read.

    Example:
        Answer(probe="identity", question="Who are you?", answer="I am Kestrel.")
    """

    probe: str
    question: str
    answer: str


def step_record(
    step: int, produced: "StepRollouts", learned: LearnedStep, took: StepTime, pushed: Pushed | None,
    sampler: str = "student",
) -> StepRecord:  # fmt: skip
    """What the two services say of a step, and the driver. `sampler` is the recipe's rollout.sampler: the teacher's
    engine is not the student's, so that its distance from the learner is no mismatch."""
    return StepRecord(
        step=step,
        time=time.time(),
        wall_s=took.wall_s,
        busy_s=produced.busy_s + sum(stage.seconds for stage in took.own.values()),
        stages=produced.stages | dict(took.own),
        stats=split_stats(learned.stats),
        loss=_finite(learned.loss),
        metrics={name: value for name, value in learned.metrics.items() if math.isfinite(value)},
        grad_norm=_finite(learned.grad_norm),
        rows=produced.shard.rows,
        refused=produced.refused,
        dropped=produced.dropped,
        skipped_rows=learned.skipped_rows,
        rewards=produced.rewards,
        policy_version_min=produced.version_min,
        policy_version_max=produced.version_max,
        weights_digest=pushed.digest if pushed else None,
        canary=pushed.canary if pushed else None,
        canary_bound=pushed.bound if pushed else None,
        mismatch=learned.mismatch if sampler == "student" else None,
        truncated=produced.truncated,
        verdicts=produced.verdicts if produced.rewards else None,
        nonfinite_rollouts=produced.nonfinite,
        nonfinite_updates=learned.nonfinite_updates,
        push_parts=pushed.seconds if pushed else None,
        pushed_bytes=pushed.num_bytes if pushed else None,
        peak_bytes=learned.peak_bytes,
        pace_s=took.pace_s,
    )


def _finite(value: float) -> float | None:
    """JSON knows no other."""
    return value if math.isfinite(value) else None


def probe_record(
    result: ProbeResult, step: int, probe: str, verdicts: Verdicts | None = None, weights: str = STEP
) -> ProbeRecord:
    """A probe's result as the record of it. weights: STEP or END."""
    return ProbeRecord(step, time.time(), probe, result.rates, result.questions, result.samples, verdicts, weights)
