"""Shard rows to packed micro-batches, the same plan on every rank.

Legend: S = tokens of one packed sequence, R = rows in it, L = tokens of the longest, N = response tokens.
A row's input is prompt + response[:-1]; the positions that predict its response are the last len(response) of them.
Rows with the same prompt, such as the samples of a group, share it: it is packed, and run, once.
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
    """Prompts, each once, and responses, as `Student` reads them."""

    input_ids_S: Tensor
    position_ids_S: Tensor
    rows_RL: Tensor  # which tokens a row consists of, and any of them after its end
    place_S: Tensor  # where a token stands in the flattened rows
    needed_N: Tensor
    targets_N: Tensor


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """One packed sequence under x, the same responses under (x, r) for a teacher, and the responses' streams."""

    tokens: PackedTokens
    context_tokens: PackedTokens
    teacher_context_logprobs_N: Tensor
    evidence_N: Tensor
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
    """Tokens that the student's forward runs for this row alone."""
    return len(row.prompt_ids) + len(row.response_ids) - 1


def plan(rows: Sequence[TrainRow], num_ranks: int, budget: int) -> list[list[list[TrainRow]]]:
    """Rows to [rank][micro-batch][row]: balanced by tokens, packs of at most `budget` tokens (or one longer row).

    Rows with the same prompt stay together as far as the budget and the balance let them. Every rank gets the same
    number of micro-batches, since ZeRO-2 and ZeRO-3 run collectives in each of them: a rank that runs out repeats as an
    empty list, which `pack_idle` turns into a batch with zero weight.
    """
    groups: dict[bytes, list[TrainRow]] = {}
    for row in rows:
        groups.setdefault(row.prompt_ids.tobytes(), []).append(row)
    fair = sum(map(_num_tokens, groups.values())) // (2 * num_ranks)  # two parts a rank leave room to balance
    limit = budget if num_ranks == 1 else min(budget, fair)
    parts = [part for group in groups.values() for part in _split(group, limit)]
    ranks: list[list[list[TrainRow]]] = [[] for _ in range(num_ranks)]
    loads = [0] * num_ranks
    for part in sorted(parts, key=_num_tokens, reverse=True):
        lightest = loads.index(min(loads))
        ranks[lightest].append(part)
        loads[lightest] += _num_tokens(part)
    packs = [_first_fit(rank_parts, budget) for rank_parts in ranks]
    most = max(1, max(len(p) for p in packs))
    return [p + [[] for _ in range(most - len(p))] for p in packs]


def _num_tokens(group: Sequence[TrainRow]) -> int:
    """Tokens that are run for rows with one prompt."""
    return len(group[0].prompt_ids) + sum(len(row.response_ids) - 1 for row in group)


def _split(group: Sequence[TrainRow], limit: int) -> list[list[TrainRow]]:
    """Parts of at most `limit` tokens, or one longer row."""
    parts: list[list[TrainRow]] = []
    for row in group:
        if parts and _num_tokens([*parts[-1], row]) <= limit:
            parts[-1].append(row)
        else:
            parts.append([row])
    return parts


def _first_fit(parts: Sequence[list[TrainRow]], budget: int) -> list[list[TrainRow]]:
    bins: list[list[TrainRow]] = []
    room: list[int] = []
    for part in parts:
        need = _num_tokens(part)
        fit = next((i for i, free in enumerate(room) if free >= need), None)
        if fit is None:
            bins.append([])
            room.append(budget)
            fit = len(bins) - 1
        bins[fit].extend(part)
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
        evidence_N=_float([row.evidence for row in rows]),
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
    return PackedBatch(tokens, tokens, zero, zero, zero, zero, zero, zero, zero, rows=())


def _pack_tokens(prompts: Sequence[Ids], responses: Sequence[Ids]) -> PackedTokens:
    inputs, positions, needed, rows = [], [], [], []
    begins: dict[bytes, int] = {}  # where a prompt stands
    offset = 0
    for prompt, response in zip(prompts, responses, strict=True):
        key, size, rest = prompt.tobytes(), len(prompt), len(response) - 1
        if key not in begins:
            begins[key] = offset
            inputs.append(prompt)
            positions.append(np.arange(size))
            offset += size
        rows.append(np.concatenate([np.arange(size) + begins[key], np.arange(rest) + offset]))
        needed.append(rows[-1][size - 1 :])
        inputs.append(response[:-1])
        positions.append(np.arange(size, size + rest))
        offset += rest
    rows_RL, place_S = _unpacking(rows, offset)
    return PackedTokens(
        _long(inputs), _long(positions), _long(rows_RL).view(len(rows), -1), _long([place_S]), _long(needed),
        _long(responses),
    )  # fmt: skip


def _unpacking(rows: Sequence[np.ndarray], num_tokens: int) -> tuple[list[np.ndarray], np.ndarray]:
    """The rows, all as long as the longest, and where each token stands in them."""
    longest = max(len(row) for row in rows)
    place_S = np.empty(num_tokens, np.int64)
    for index, row in enumerate(rows):
        place_S[row] = index * longest + np.arange(len(row))
    return [np.pad(row, (0, longest - len(row))) for row in rows], place_S


def _long(parts: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))


def _float(parts: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.float32))
