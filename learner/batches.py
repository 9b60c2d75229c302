"""Shard rows to packed micro-batches; `learner.plan` says which rows go together.

Legend: S = tokens of one packed sequence, N = response tokens.
A row's input is prompt + response[:-1]; the positions that predict its response are the last len(response) of them.
Rows with the same prompt, such as the samples of a group, share it: it is packed, and run, once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from evidence.mismatch import sampled_under_x
from evidence.records import Ids, TrainRow
from learner.attention import PackedRows
from learner.objectives import DENOMINATORS, BatchCounts, Objective


class PackedTokens(NamedTuple):
    """Prompts, each once, and responses, as `Student` reads them."""

    input_ids_S: Tensor
    position_ids_S: Tensor
    packed: PackedRows
    needed_N: Tensor
    targets_N: Tensor

    def to(self, device: torch.device) -> "PackedTokens":
        """The same on a device."""
        return PackedTokens(*(part.to(device) for part in self))


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
    sampler_logprobs_N: Tensor
    rows: tuple[TrainRow, ...]

    def to(self, device: torch.device) -> "PackedBatch":
        """The same on a device: a copy amid a step would wait for all that the device has to do."""
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "rows"}
        return replace(self, **{name: part.to(device) for name, part in own.items()})


def count(rows: Sequence[TrainRow]) -> BatchCounts:
    """Totals of a whole step, before rows that contribute nothing are dropped."""
    return BatchCounts(
        tokens=sum(len(row.response_ids) for row in rows),
        kept=sum(int(np.count_nonzero(row.weight)) for row in rows),
        rows=len(rows),
    )


def contributing(rows: Sequence[TrainRow], objective: Objective, beta_kl: float, anchor_on: str) -> list[TrainRow]:
    """What of the rows has a gradient: all of them under an anchor on all tokens, otherwise those with a kept token;
    with `anchor_on` "kept" they end with the last.

    Where the objective needs an advantage and there is no anchor, it is not 0 either; ValueError names a row without
    one.
    """
    if objective.needs_advantage:
        for row in rows:
            if row.advantage is None:
                raise ValueError(
                    f"rollout {row.rollout_id}: advantage: found none, expected a number: the objective needs rewards"
                )
    if beta_kl > 0 and anchor_on == "all":
        return list(rows)
    idle = objective.needs_advantage and beta_kl == 0  # where the advantage is 0
    useful = [row for row in rows if row.weight.any() and not (idle and row.advantage == 0)]
    return useful if anchor_on == "all" else [to_last_kept(row) for row in useful]


def to_last_kept(row: TrainRow) -> TrainRow:
    """The row without the tokens after its last kept one, on which nothing before them depends.

    The row has a kept token.
    """
    length = int(np.flatnonzero(row.weight)[-1]) + 1
    names = ("response_ids", "teacher_context_logprobs", "teacher_logprobs", "evidence", "weight", "sampler_logprobs")
    cut = {name: getattr(row, name)[:length] for name in names if getattr(row, name) is not None}
    return replace(row, **cut, num_left_out=row.num_left_out + len(row.response_ids) - length)


def pack(rows: Sequence[TrainRow], counts: BatchCounts, denominator: str, anchor_on: str = "all") -> PackedBatch:
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
        scale_N=spread([scale(counts, len(row.response_ids) + row.num_left_out) for row in rows]),
        anchor_scale_N=_float([_anchored(row, anchor_on) / max(counts.tokens, 1) for row in rows]),
        sampler_logprobs_N=_float([sampled_under_x(row) for row in rows]),
        rows=tuple(rows),
    )


def _anchored(row: TrainRow, anchor_on: str) -> np.ndarray:
    """1 for each token that the anchor holds, 0 for the others."""
    return np.ones(len(row.weight)) if anchor_on == "all" else (row.weight != 0).astype(np.float64)


def pack_idle(example: TrainRow) -> PackedBatch:
    """A one-token batch of zero weight: keeps a rank in step with the collectives of the others."""
    zero = torch.zeros(1)
    tokens = _pack_tokens([example.prompt_ids[:1]], [example.response_ids[:1]])
    return PackedBatch(tokens, tokens, zero, zero, zero, zero, zero, zero, zero, zero, rows=())


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
    return PackedTokens(_long(inputs), _long(positions), _packed_rows(rows, offset), _long(needed), _long(responses))


def _packed_rows(rows: Sequence[np.ndarray], num_tokens: int) -> PackedRows:
    """Of which packed tokens each row consists."""
    starts = np.cumsum([0, *map(len, rows)], dtype=np.int32)
    place_S = np.empty(num_tokens, np.int64)
    for row, start in zip(rows, starts[:-1], strict=True):
        place_S[row] = start + np.arange(len(row))
    return PackedRows(_long(rows), torch.from_numpy(starts), torch.from_numpy(place_S), max(map(len, rows)))


def _long(parts: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))


def _float(parts: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.float32))
