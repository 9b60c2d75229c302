"""Shard rows to packed micro-batches, the same plan on every rank.

Legend: S = tokens of one packed sequence, N = response tokens in it.
A row's input is prompt + response[:-1]; the positions that predict its response are the last len(response) of them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from evidence.records import Ids, TrainRow
from learner.objectives import DENOMINATORS, BatchCounts, Objective


class PackedTokens(NamedTuple):
    """Rows one after the other, as `Student` reads them; a row begins where `position_ids_S` is 0."""

    input_ids_S: Tensor
    position_ids_S: Tensor
    needed_N: Tensor
    targets_N: Tensor


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """One packed sequence under x, the same responses under (x, r) for a teacher, and the responses' streams."""

    tokens: PackedTokens
    context_tokens: PackedTokens
    teacher_context_logprobs_N: Tensor
    base_logprobs_N: Tensor
    weight_N: Tensor
    advantage_N: Tensor
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


def contributing(rows: Sequence[TrainRow], objective: Objective, beta_kl: float) -> list[TrainRow]:
    """Rows with a gradient: all of them under an anchor, otherwise those with a kept token.

    Where the objective needs an advantage, it is not 0 either; ValueError names a row without one.
    """
    if objective.needs_advantage:
        for row in rows:
            if row.advantage is None:
                raise ValueError(
                    f"rollout {row.rollout_id}: advantage: found none, expected a number: the objective needs rewards"
                )
    return [
        row
        for row in rows
        if beta_kl > 0 or (row.weight.any() and not (objective.needs_advantage and row.advantage == 0))
    ]


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
    """Concatenates rows without padding; scales come from the whole step's counts, so any split gives one gradient.

    The shard's log pi_T(y|x) is the anchor's reference: of a frozen teacher it is the base model's.
    """
    scale = DENOMINATORS[denominator]
    responses = [row.response_ids for row in rows]

    def spread(values: Sequence[float]) -> Tensor:
        """One value a row to one a token."""
        return _float([np.full(len(ids), value) for ids, value in zip(responses, values, strict=True)])

    return PackedBatch(
        tokens=_pack_tokens([row.prompt_ids for row in rows], responses),
        context_tokens=_pack_tokens([row.context_prompt_ids for row in rows], responses),
        teacher_context_logprobs_N=_float([row.teacher_context_logprobs for row in rows]),
        base_logprobs_N=_float([row.teacher_logprobs for row in rows]),
        weight_N=_float([row.weight for row in rows]),
        advantage_N=spread([math.nan if row.advantage is None else row.advantage for row in rows]),
        scale_N=spread([scale(counts, len(ids)) for ids in responses]),
        anchor_scale_N=spread([DENOMINATORS["response"](counts, len(ids)) for ids in responses]),
        rows=tuple(rows),
    )


def pack_idle(example: TrainRow) -> PackedBatch:
    """A one-token batch of zero weight: keeps a rank in step with the collectives of the others."""
    zero = torch.zeros(1)
    tokens = _pack_tokens([example.prompt_ids[:1]], [example.response_ids[:1]])
    return PackedBatch(tokens, tokens, zero, zero, zero, zero, zero, zero, rows=())


def _pack_tokens(prompts: Sequence[Ids], responses: Sequence[Ids]) -> PackedTokens:
    inputs, positions, needed, offset = [], [], [], 0
    for prompt, response in zip(prompts, responses, strict=True):
        inputs.append(np.concatenate([prompt, response[:-1]]))
        length = len(inputs[-1])
        positions.append(np.arange(length))
        needed.append(np.arange(offset + length - len(response), offset + length))
        offset += length
    return PackedTokens(_long(inputs), _long(positions), _long(needed), _long(responses))


def _long(parts: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))


def _float(parts: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.float32))
