"""What a rank says of a step, and what all ranks say together. Apart from what makes it, so that its reader needs no
DeepSpeed to unpack it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from evidence.diagnostics import TokenStats
from evidence.mismatch import Mismatch
from evidence.records import Floats
from evidence.telemetry import Span

# How the ranks' values of a metric become the step's; in rank order, without the ranks that do not have it.
REDUCTIONS: dict[str, Callable[[Sequence[float]], float]] = {
    "sum": sum,
    "mean": lambda values: sum(values) / len(values),
    "max": max,
    "first": lambda values: values[0],  # the same on every rank, so that of rank 0 is enough
}


# Parts of a step's time, which follow each other; each is a metric NAME_s, in seconds, a mean over the ranks.
PARTS = {
    "pack": "rows put together as batches",
    "frozen": "forward passes of the teacher and of the base, where the learner runs them",
    "forward": "the student's layers",
    "head": "the student's head and the loss",
    "backward": "the backward pass, with what it computes again",
    "reduce": "gradients over the ranks, and waiting for the slowest",
    "optimizer": "the update",
}
# What a rank's lane of the timeline shows of them: its own rows, then what it does with the others.
ON_LANE = {"learn": ("pack", "frozen", "forward", "head", "backward"), "reduce": ("reduce",),
           "optimizer": ("optimizer",)}  # fmt: skip


RANKS = "learner rank"  # with its number the name of a rank, in messages and as a lane of the timeline


def rank_name(rank: int) -> str:
    return f"{RANKS} {rank}"


@dataclass(frozen=True)
class Work:
    """What a rank's student ran, over all of the step's updates. attended: pairs of a token and one it attends to."""

    tokens: int
    targets: int  # of them those that the head was asked for
    attended: int


@dataclass(frozen=True)
class Metric:
    """One rank's value, and how the ranks' values become the step's: a key of `REDUCTIONS`."""

    value: float
    reduction: str

    def __post_init__(self) -> None:
        assert self.reduction in REDUCTIONS, self.reduction


@dataclass(frozen=True)
class StepReport:
    """What one rank says of a step, of its first update unless said otherwise.

    loss and row_tokens add up over ranks; grad_norm and skipped_rows are the same on each. metrics: `clip_fraction` is
    the share of the step's active tokens, over all later updates. `stats` are (guided, sums) per row, and `logprobs`
    log pi_old(y|x) [T] by rollout_id, of the rows that this rank ran whole. `mismatch` is of what it ran of the rows
    that were sampled from x: a guided row was sampled under (x, r), and the learner runs it under x.
    """

    loss: float
    metrics: dict[str, Metric]
    grad_norm: float
    row_tokens: int  # of the rows that were run, a prompt that they share counted in each
    skipped_rows: int
    stats: tuple[tuple[bool, TokenStats], ...]
    logprobs: dict[str, Floats] = field(default_factory=dict)
    mismatch: Mismatch = field(default_factory=Mismatch)
    nonfinite_updates: int = 0  # the same on each: updates that moved no weight
    work: Work = field(default=Work(0, 0, 0))
    peak_bytes: dict[str, int] = field(default_factory=dict)  # by kind, as `learner.memory` has it


@dataclass(frozen=True)
class LearnedStep:
    """One learner step over all ranks."""

    loss: float
    metrics: dict[str, float]
    grad_norm: float
    row_tokens: int
    skipped_rows: int
    stats: list[tuple[bool, TokenStats]]
    logprobs: dict[str, Floats]  # log pi_theta(y|x) by rollout_id, before the step
    mismatch: Mismatch = field(default_factory=Mismatch)  # with who sampled, over the plain rows that were run
    nonfinite_updates: int = 0  # whose gradient was not finite: they moved no weight
    peak_bytes: dict[str, list[int]] = field(default_factory=dict)  # of memory, by kind, of each rank


def over_ranks(reports: Sequence[StepReport]) -> LearnedStep:
    """The step that the ranks' reports, in rank order, make together."""
    return LearnedStep(
        loss=sum(report.loss for report in reports),
        metrics=_reduced([report.metrics for report in reports]),
        grad_norm=reports[0].grad_norm,
        row_tokens=sum(report.row_tokens for report in reports),
        skipped_rows=reports[0].skipped_rows,
        stats=[pair for report in reports for pair in report.stats],
        logprobs={name: values for report in reports for name, values in report.logprobs.items()},
        mismatch=sum((report.mismatch for report in reports), Mismatch()),
        nonfinite_updates=reports[0].nonfinite_updates,
        peak_bytes={kind: [report.peak_bytes[kind] for report in reports] for kind in reports[0].peak_bytes},
    )


def rank_spans(reports: Sequence[StepReport], begin: float) -> Iterator[Span]:
    """A lane a rank, where there are several: its parts of a step from `begin` on, a Unix time, each as a whole after
    the one before it. The rank that the others wait for is the one whose reduce is the shortest."""
    for rank, report in enumerate(reports if len(reports) > 1 else ()):
        since = begin
        for name, parts in ON_LANE.items():
            seconds = sum(report.metrics[f"{part}_s"].value for part in parts if f"{part}_s" in report.metrics)
            if seconds > 0:
                yield Span(rank_name(rank), name, since, since + seconds)
                since += seconds


def _reduced(ranks: Sequence[dict[str, Metric]]) -> dict[str, float]:
    """A rank without rows has no metric of a loss: only those that have one count."""
    found = {name: [metrics[name] for metrics in ranks if name in metrics] for metrics in ranks for name in metrics}
    return {name: REDUCTIONS[of[0].reduction]([metric.value for metric in of]) for name, of in found.items()}
