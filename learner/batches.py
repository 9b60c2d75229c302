"""Shard rows to packed micro-batches, the same plan on every rank.

Legend: S = tokens of one packed sequence, N = response tokens in it.
A row's input is prompt + response[:-1]; the positions that predict its response are the last len(response) of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evidence.records import TrainRow
from learner.objectives import DENOMINATORS, BatchCounts


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """One packed sequence: row boundaries live in `position_ids_S`, which restart at 0."""

    input_ids_S: Tensor
    position_ids_S: Tensor
    needed_N: Tensor
    targets_N: Tensor
    teacher_context_logprobs_N: Tensor
    teacher_logprobs_N: Tensor
    weight_N: Tensor
    scale_N: Tensor
    anchor_scale_N: Tensor
    rows: tuple[TrainRow, ...]


def count(rows: Sequence[TrainRow]) -> BatchCounts:
    """Totals of a whole step, before rows that contribute nothing are dropped."""
    return BatchCounts(
        tokens=sum(len(row.response_ids) for row in rows),
        kept=sum(int(np.count_nonzero(row.weight)) for row in rows),
        rows=len(rows),
    )


def contributing(rows: Sequence[TrainRow], beta_kl: float) -> list[TrainRow]:
    """Rows with a gradient: all of them under an anchor, otherwise those with a kept token."""
    return [row for row in rows if beta_kl > 0 or row.weight.any()]


def row_length(row: TrainRow) -> int:
    """Tokens that the student's forward runs for this row."""
    return len(row.prompt_ids) + len(row.response_ids) - 1


def plan(rows: Sequence[TrainRow], num_ranks: int, budget: int) -> list[list[list[TrainRow]]]:
    """Rows to [rank][micro-batch][row]: balanced by tokens, packs of at most `budget` tokens (or one longer row).

    Every rank gets the same number of micro-batches, since ZeRO-2 and ZeRO-3 run collectives in each of them: a rank
    that runs out repeats as an empty list, which `pack_idle` turns into a batch with zero weight.
    """
    ranks: list[list[TrainRow]] = [[] for _ in range(num_ranks)]
    loads = [0] * num_ranks
    for row in sorted(rows, key=row_length, reverse=True):
        lightest = loads.index(min(loads))
        ranks[lightest].append(row)
        loads[lightest] += row_length(row)
    packs = [_first_fit(rank_rows, budget) for rank_rows in ranks]
    most = max(1, max(len(p) for p in packs))
    return [p + [[] for _ in range(most - len(p))] for p in packs]


def _first_fit(rows: Sequence[TrainRow], budget: int) -> list[list[TrainRow]]:
    bins: list[list[TrainRow]] = []
    room: list[int] = []
    for row in rows:
        need = row_length(row)
        fit = next((i for i, free in enumerate(room) if free >= need), None)
        if fit is None:
            bins.append([])
            room.append(budget)
            fit = len(bins) - 1
        bins[fit].append(row)
        room[fit] -= need
    return bins


def pack(rows: Sequence[TrainRow], counts: BatchCounts, denominator: str) -> PackedBatch:
    """Concatenates rows without padding; scales come from the whole step's counts, so any split gives one gradient."""
    scale = DENOMINATORS[denominator]
    inputs, positions, needed, offset = [], [], [], 0
    for row in rows:
        length, num_response = row_length(row), len(row.response_ids)
        inputs.append(np.concatenate([row.prompt_ids, row.response_ids[:-1]]))
        positions.append(np.arange(length))
        needed.append(np.arange(offset + length - num_response, offset + length))
        offset += length
    lengths = [len(row.response_ids) for row in rows]
    return PackedBatch(
        input_ids_S=_long(inputs),
        position_ids_S=_long(positions),
        needed_N=_long(needed),
        targets_N=_long([row.response_ids for row in rows]),
        teacher_context_logprobs_N=_float([row.teacher_context_logprobs for row in rows]),
        teacher_logprobs_N=_float([row.teacher_logprobs for row in rows]),
        weight_N=_float([row.weight for row in rows]),
        scale_N=_float([np.full(n, scale(counts, n)) for n in lengths]),
        anchor_scale_N=_float([np.full(n, DENOMINATORS["response"](counts, n)) for n in lengths]),
        rows=tuple(rows),
    )


def pack_idle(example: TrainRow) -> PackedBatch:
    """A one-token batch of zero weight: keeps a rank in step with the collectives of the others."""
    zero = torch.zeros(1)
    return PackedBatch(
        input_ids_S=torch.tensor([int(example.prompt_ids[0])]),
        position_ids_S=torch.tensor([0]),
        needed_N=torch.tensor([0]),
        targets_N=torch.tensor([int(example.response_ids[0])]),
        teacher_context_logprobs_N=zero,
        teacher_logprobs_N=zero,
        weight_N=zero,
        scale_N=zero,
        anchor_scale_N=zero,
        rows=(),
    )


def _long(parts: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))


def _float(parts: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.float32))
