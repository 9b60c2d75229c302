"""One training step, from shard rows to a stepped engine and its metrics."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evidence.diagnostics import TokenStats, diagnose
from evidence.records import Floats, Ids, TrainRow
from learner.batches import PackedBatch, contributing, count, pack, pack_idle, plan, row_length
from learner.config import LearnerConfig
from learner.engine import ZeroEngine
from learner.objectives import OBJECTIVES, ObjectiveSettings, TokenInputs


@dataclass(frozen=True)
class StepReport:
    """What one rank says of a step. `stats` are (guided, sums) per row, of the first update."""

    loss: float
    metrics: dict[str, float]
    grad_norm: float
    computed_tokens: int
    skipped_rows: int
    stats: tuple[tuple[bool, TokenStats], ...]


class Trainer:
    """Turns a step's rows into `updates_per_batch` optimizer steps. Knows per-token weights, not the method."""

    def __init__(self, engine: ZeroEngine, config: LearnerConfig) -> None:
        self.engine, self.config = engine, config
        self.settings = ObjectiveSettings(beta_kl=config.beta_kl, clip_ratio=config.clip_ratio)

    def step(self, rows: Sequence[TrainRow]) -> StepReport:
        """Every rank calls it with the same rows; each computes its own share."""
        counts = count(rows)
        useful = contributing(rows, self.config.beta_kl)
        unseen = self._unseen_stats(rows, useful)
        if not useful:
            return StepReport(0.0, {}, 0.0, 0, len(rows), unseen)
        mine = plan(useful, self.engine.num_ranks, self.config.micro_batch_tokens)[self.engine.rank]
        batches = [pack(part, counts, self.config.denominator) if part else pack_idle(useful[0]) for part in mine]
        old: dict[int, Tensor] = {}
        reports: list[tuple[float, dict[str, float], float]] = []
        for _ in range(self.config.updates_per_batch):
            reports.append(self._update(batches, old))
        loss, metrics, grad_norm = reports[0]
        return StepReport(
            loss=loss,
            metrics=metrics,
            grad_norm=grad_norm,
            computed_tokens=sum(row_length(row) for part in mine for row in part),
            skipped_rows=len(rows) - len(useful),
            stats=unseen
            + tuple(
                (row.guided, _row_stats(row, old_logprobs.cpu().numpy()))
                for index, batch in enumerate(batches)
                for row, old_logprobs in zip(batch.rows, _split(old[index], batch), strict=True)
            ),
        )

    def _unseen_stats(
        self, rows: Sequence[TrainRow], useful: Sequence[TrainRow]
    ) -> tuple[tuple[bool, TokenStats], ...]:
        """Rows that the student never ran still count as tokens that were not kept; rank 0 speaks for them."""
        if self.engine.rank != 0:
            return ()
        ran = {row.rollout_id for row in useful}
        return tuple((row.guided, _row_stats(row, None)) for row in rows if row.rollout_id not in ran)

    def _update(self, batches: Sequence[PackedBatch], old: dict[int, Tensor]) -> tuple[float, dict[str, float], float]:
        total = 0.0
        sums: dict[str, float] = {}

        def loss_of(indexed: tuple[int, PackedBatch]) -> Tensor:
            nonlocal total
            index, batch = indexed
            logprobs = self.engine.logprobs(batch.input_ids_S, batch.position_ids_S, batch.needed_N, batch.targets_N)
            # The first update's own log-probs are pi_old: no second forward.
            old.setdefault(index, logprobs.detach())
            if not batch.rows:  # in step with the other ranks' collectives; k3 of it may be infinite
                return logprobs.sum() * 0.0
            loss, metrics = OBJECTIVES[self.config.objective](self._inputs(batch, logprobs, old[index]), self.settings)
            total += float(loss.detach())
            for key, value in metrics.items():
                sums[key] = sums.get(key, 0.0) + float(value)
            return loss

        grad_norm = self.engine.step(list(enumerate(batches)), loss_of)
        return total, sums, grad_norm

    def _inputs(self, batch: PackedBatch, logprobs: Tensor, old: Tensor) -> TokenInputs:
        def here(tensor: Tensor) -> Tensor:
            return tensor.to(logprobs.device)

        return TokenInputs(
            logprobs_N=logprobs,
            old_logprobs_N=old,
            teacher_context_logprobs_N=here(batch.teacher_context_logprobs_N),
            base_logprobs_N=here(batch.teacher_logprobs_N),
            weight_N=here(batch.weight_N),
            scale_N=here(batch.scale_N),
            anchor_scale_N=here(batch.anchor_scale_N),
        )

    def score(self, prompt_ids: Ids, response_ids: Ids) -> list[float]:
        """The learner's own log-probs of one text, for the canary; a collective under ZeRO-3."""
        streams = (np.zeros(len(response_ids), np.float32),) * 4
        row = TrainRow("canary", False, prompt_ids, prompt_ids, response_ids, *streams)
        batch = pack([row], count([row]), "response")
        with torch.no_grad():
            return self.engine.logprobs(
                batch.input_ids_S, batch.position_ids_S, batch.needed_N, batch.targets_N
            ).tolist()


def _split(logprobs: Tensor, batch: PackedBatch) -> Sequence[Tensor]:
    return torch.split(logprobs, [len(row.response_ids) for row in batch.rows]) if batch.rows else ()


def _row_stats(row: TrainRow, logprobs: Floats | None) -> TokenStats:
    return diagnose(row.evidence, row.weight, logprobs, row.teacher_context_logprobs, rows=1)
