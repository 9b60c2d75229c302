"""One training step, from shard rows to a stepped engine and its metrics."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from evidence.diagnostics import TokenStats, diagnose
from evidence.mismatch import Mismatch, mismatch, sampled_under_x
from evidence.records import Floats, Ids, TrainRow
from learner.batches import PackedBatch, contributing, count, pack, pack_idle
from learner.config import LearnerConfig
from learner.engine import ZeroEngine
from learner.frozen import FrozenModel
from learner.objectives import OBJECTIVES, BatchCounts, ObjectiveSettings, TokenInputs
from learner.plan import plan, row_length
from learner.report import Metric, StepReport, Work

LOSS = "loss"


@dataclass(frozen=True)
class Update:
    """One optimizer step: sums over this rank's micro-batches, and the gradient's norm."""

    loss: float
    metrics: dict[str, float]
    grad_norm: float


class Trainer:
    """Turns a step's rows into `updates_per_batch` optimizer steps. Knows per-token weights, not the method.

    `teacher` gives the distributions of objectives that compare them. `base` is the anchor's reference where the
    shard's log pi_T(y|x) is not. skips: whether an update whose gradient is not finite is left out; otherwise it is an
    error.
    """

    def __init__(
        self,
        engine: ZeroEngine,
        config: LearnerConfig,
        teacher: FrozenModel | None = None,
        base: FrozenModel | None = None,
        skips: bool = False,
    ) -> None:
        self.engine, self.config, self.teacher, self.base, self.skips = engine, config, teacher, base, skips
        self.objective = OBJECTIVES[config.objective]
        self.settings = ObjectiveSettings(
            config.beta_kl,
            config.clip_low,
            config.clip_high,
            config.evidence_scale,
            config.evidence_bound,
            config.importance_clip,
        )
        assert (teacher is not None) == (self.objective.contributions is not None)
        if teacher is not None and teacher.vocabulary != engine.vocabulary:
            raise ValueError(
                f"learner.objective: {config.objective}: found a teacher with a vocabulary of {teacher.vocabulary} "
                f"tokens, expected the student's {engine.vocabulary}"
            )

    def step(self, rows: Sequence[TrainRow]) -> StepReport:
        """Every rank calls it with the same rows; each computes its own share."""
        counts = count(rows)
        useful = contributing(rows, self.objective, self.config.beta_kl, self.config.anchor_on)
        unseen = self._unseen_stats(rows, useful)
        if not useful:
            return StepReport(0.0, {}, 0.0, 0, len(rows), unseen)
        self.engine.clock.start()
        budget, is_compared = self.config.micro_batch, self.teacher is not None
        mine = plan(useful, self.engine.num_ranks, budget, is_compared)[self.engine.rank]
        packs = [self._pack(part, useful[0], counts) for part in mine]
        work = _work(packs, self.config.updates_per_batch)  # before a device has them, which would be asked
        batches = [self._placed(batch) for batch in packs]
        rate = {"lr": Metric(self.engine.lr, "first")}
        old: dict[int, Tensor] = {}
        updates = [self._update(batches, old) for _ in range(self.config.updates_per_batch)]
        parts = {f"{part}_s": Metric(seconds, "mean") for part, seconds in self.engine.clock.take().items()}
        ran = [
            (row, logprobs.numpy())
            for index, batch in enumerate(batches)
            for row, logprobs in zip(batch.rows, _split(old[index].cpu(), batch), strict=True)
        ]
        finite = [(row, logprobs) for row, logprobs in ran if np.isfinite(logprobs).all()]
        whole = {row.rollout_id: logprobs for row, logprobs in finite if not row.num_left_out}
        return StepReport(
            loss=updates[0].loss,
            metrics=rate
            | parts
            | _combine([update.metrics for update in updates], counts.kept, _num_corrected(useful)),
            grad_norm=updates[0].grad_norm,
            row_tokens=sum(row_length(row) for part in mine for row in part),
            skipped_rows=len(rows) - len(useful),
            stats=unseen + tuple((row.guided, _row_stats(row, logprobs)) for row, logprobs in ran),
            logprobs=whole,
            mismatch=sum((_row_mismatch(row, logprobs) for row, logprobs in finite), Mismatch()),
            nonfinite_updates=sum(not math.isfinite(update.grad_norm) for update in updates),
            work=work,
        )

    def _pack(self, part: Sequence[TrainRow], example: TrainRow, counts: BatchCounts) -> PackedBatch:
        return pack(part, counts, self.config.denominator, self.config.anchor_on) if part else pack_idle(example)

    def _placed(self, batch: PackedBatch) -> PackedBatch:
        """On the engine's device, with the base's log-probs where the shard's are not the anchor's reference."""
        batch = batch.to(self.engine.device)
        self.engine.clock.mark("pack")
        if self.base is not None:
            batch = replace(batch, base_logprobs_N=self.base.logprobs(batch.tokens))
            self.engine.clock.mark("frozen")
        return batch

    def _unseen_stats(
        self, rows: Sequence[TrainRow], useful: Sequence[TrainRow]
    ) -> tuple[tuple[bool, TokenStats], ...]:
        """What of the rows the student never ran still counts as tokens that were not kept; rank 0 speaks for it."""
        if self.engine.rank != 0:
            return ()
        ran = {row.rollout_id: len(row.response_ids) for row in useful}
        lengths = [(row, ran.get(row.rollout_id, 0)) for row in rows]
        return tuple((row.guided, _unseen(row, length)) for row, length in lengths if length < len(row.response_ids))

    def _update(self, batches: Sequence[PackedBatch], old: dict[int, Tensor]) -> Update:
        told: list[dict[str, Tensor]] = []  # read once the step is taken: until then nothing waits for the device

        def loss_of(indexed: tuple[int, PackedBatch]) -> Tensor:
            index, batch = indexed
            # Once an update and micro-batch, also when idle: under ZeRO-3 it is a collective.
            teacher = self.teacher.distribution(batch.context_tokens) if self.teacher is not None else None
            if teacher is not None:
                self.engine.clock.mark("frozen")
            logprobs, divergence = self.engine.forward(batch.tokens, teacher)
            # The first update's own log-probs are pi_old: no second forward.
            old.setdefault(index, logprobs.detach())
            if not batch.rows:  # in step with the other ranks' collectives; k3 of it may be infinite
                return logprobs.sum() * 0.0
            loss, metrics = self.objective(_inputs(batch, logprobs, old[index], divergence), self.settings)
            told.append({key: value.detach() for key, value in ({LOSS: loss} | metrics).items()})
            return loss

        grad_norm = self.engine.step(list(enumerate(batches)), loss_of, self.skips)
        sums = _added(told)
        return Update(sums.pop(LOSS, 0.0), sums, grad_norm)

    def score(self, prompt_ids: Ids, response_ids: Ids) -> list[float]:
        """The learner's own log-probs of one text, for the canary; a collective under ZeRO-3."""
        streams = (np.zeros(len(response_ids), np.float32),) * 4
        row = TrainRow("canary", False, prompt_ids, prompt_ids, response_ids, *streams)
        with torch.no_grad():
            return self.engine.forward(pack([row], count([row]), "response").tokens)[0].tolist()


def _work(batches: Sequence[PackedBatch], updates: int) -> Work:
    """Each token attends to those before it in its row, and to itself."""
    ran = [batch.tokens for batch in batches if batch.rows]
    return Work(
        tokens=updates * sum(len(part.input_ids_S) for part in ran),
        targets=updates * sum(len(part.targets_N) for part in ran),
        attended=updates * sum(int((part.position_ids_S.numpy() + 1).sum()) for part in ran),
    )


def _added(told: Sequence[dict[str, Tensor]]) -> dict[str, float]:
    """The sum of each key over micro-batches, in float64 and in their order; the device is asked once."""
    if not told:
        return {}
    every = torch.stack([torch.stack([value.double() for value in one.values()]) for one in told]).tolist()
    return {key: sum(values) for key, values in zip(told[0], zip(*every, strict=True), strict=True)}


def _inputs(batch: PackedBatch, logprobs: Tensor, old: Tensor, divergence: Tensor | None) -> TokenInputs:
    return TokenInputs(
        logprobs_N=logprobs,
        old_logprobs_N=old,
        teacher_context_logprobs_N=batch.teacher_context_logprobs_N,
        evidence_N=batch.evidence_N,
        base_logprobs_N=batch.base_logprobs_N,
        weight_N=batch.weight_N,
        advantage_N=batch.advantage_N,
        scale_N=batch.scale_N,
        anchor_scale_N=batch.anchor_scale_N,
        sampler_logprobs_N=batch.sampler_logprobs_N,
        divergence_N=divergence,
    )


CORRECTED = {"importance_weight": "importance_mean", "importance_clipped": "importance_clip_fraction"}


def _num_corrected(rows: Sequence[TrainRow]) -> int:
    """Tokens with a weight, whose sampler saw x."""
    return sum(int(((row.weight != 0) & ~np.isnan(sampled_under_x(row))).sum()) for row in rows)


def _combine(updates: Sequence[dict[str, float]], active: int, corrected: int) -> dict[str, Metric]:
    """The first update's metrics; its ratio is 1, so what the clip did is told of the later ones. All are parts of the
    step's, which add up over ranks."""
    first, *later = updates
    metrics = {key: value for key, value in first.items() if key != "clipped_tokens" and key not in CORRECTED}
    if corrected:
        metrics |= {CORRECTED[key]: value / corrected for key, value in first.items() if key in CORRECTED}
    if later and "clipped_tokens" in first:
        clipped = sum(update["clipped_tokens"] for update in later)
        metrics["clip_fraction"] = clipped / (max(active, 1) * len(later))
    return {key: Metric(value, "sum") for key, value in metrics.items()}


def _split(logprobs: Tensor, batch: PackedBatch) -> Sequence[Tensor]:
    return torch.split(logprobs, [len(row.response_ids) for row in batch.rows]) if batch.rows else ()


def _row_stats(row: TrainRow, logprobs: Floats | None) -> TokenStats:
    """A row whose log-probs are not finite counts as one that the student never ran."""
    if logprobs is not None and not np.isfinite(logprobs).all():
        logprobs = None
    return diagnose(row.evidence, row.weight, logprobs, row.teacher_context_logprobs, rows=1)


def _unseen(row: TrainRow, length: int) -> TokenStats:
    """Of the tokens after the first `length`; the row itself counts where those are none."""
    streams = (row.evidence[length:], row.weight[length:], None, row.teacher_context_logprobs[length:])
    return diagnose(*streams, rows=int(length == 0))


def _row_mismatch(row: TrainRow, logprobs: Floats) -> Mismatch:
    """Of a plain row: a guided one was sampled under another prompt than the learner's."""
    return Mismatch() if row.guided or row.sampler_logprobs is None else mismatch(logprobs, row.sampler_logprobs)
