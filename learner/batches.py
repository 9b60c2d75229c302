"""Shard rows to packed micro-batches, the same plan on every rank.

Legend: S = tokens of one packed sequence, N = response tokens; of its rows, R, U and L as in `learner.attention`.
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
from learner.config import UNPACKED
from learner.objectives import DENOMINATORS, BatchCounts, Objective

# Where attention pads, all rows of a pack are as long as the longest for the time of a layer, which takes memory
# (`UNPACKED`); and time, the more the longer they are: attention to 16 * SPAN tokens takes a layer that is 700 wide as
# long as all else.
SPAN = 512  # times the budget: the most that the tokens of padding times those of the longest row may be
OF_A_TEACHER = 4  # times as much of each for what a frozen teacher reads: no backward pass keeps any of it


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


def row_length(row: TrainRow) -> int:
    """Tokens that the student's forward runs for this row alone."""
    return len(row.prompt_ids) + len(row.response_ids) - 1


class Extent(NamedTuple):
    """What a pack of rows takes. tokens: S. unpacked: U."""

    tokens: int = 0
    rows: int = 0
    unpacked: int = 0
    longest: int = 0

    def beside(self, other: "Extent") -> "Extent":
        """In one pack with rows of other prompts."""
        return Extent(
            self.tokens + other.tokens,
            self.rows + other.rows,
            self.unpacked + other.unpacked,
            max(self.longest, other.longest),
        )

    def fits(self, budget: int) -> bool:
        """Whether unpacked rows, and what pads them, are within the bounds of a pack of `budget` tokens."""
        padded = self.rows * self.longest
        spent = (padded - self.unpacked) * self.longest
        return self.rows == 1 or (padded <= UNPACKED * budget and spent <= SPAN * budget)


@dataclass(frozen=True)
class Part:
    """Rows with one prompt, which stay together: under x and, where a teacher runs it, under (x, r)."""

    rows: tuple[TrainRow, ...]
    student: Extent
    teacher: Extent

    @classmethod
    def of(cls, rows: Sequence[TrainRow], is_compared: bool) -> "Part":
        sizes = [len(row.response_ids) - 1 for row in rows]

        def extent(prompt: int) -> Extent:
            return Extent(prompt + sum(sizes), len(rows), len(rows) * prompt + sum(sizes), prompt + max(sizes))

        return cls(tuple(rows), extent(len(rows[0].prompt_ids)), extent(_context(rows)) if is_compared else Extent())

    def fits(self, tokens: int, budget: int) -> bool:
        """Whether it is one row, or within `tokens` and the bounds of a pack of `budget`."""
        bounded = self.student.fits(budget) and self.teacher.fits(OF_A_TEACHER * budget)
        return len(self.rows) == 1 or (self.student.tokens <= tokens and bounded)


def _context(rows: Sequence[TrainRow]) -> int:
    return max(len(row.context_prompt_ids) for row in rows)


def plan(
    rows: Sequence[TrainRow], num_ranks: int, budget: int, is_compared: bool = False
) -> list[list[list[TrainRow]]]:
    """Rows to [rank][micro-batch][row]: balanced by tokens, packs of at most `budget` tokens (or one longer row), of
    rows that are about as long as each other.

    Rows with the same prompt stay together as far as the budget and the balance let them. Every rank gets the same
    number of micro-batches, since ZeRO-2 and ZeRO-3 run collectives in each of them: a rank that runs out repeats as an
    empty list, which `pack_idle` turns into a batch with zero weight.

    is_compared: whether a teacher reads the same responses under (x, r).
    """
    groups: dict[bytes, list[TrainRow]] = {}
    for row in rows:
        groups.setdefault(row.prompt_ids.tobytes(), []).append(row)
    whole = [Part.of(group, is_compared) for group in groups.values()]
    fair = sum(part.student.tokens for part in whole) // (2 * num_ranks)  # two parts a rank leave room to balance
    limit = budget if num_ranks == 1 else min(budget, fair)
    parts = [part for group in whole for part in _split(group, limit, budget, is_compared)]
    ranks: list[list[Part]] = [[] for _ in range(num_ranks)]
    loads = [0] * num_ranks
    for part in sorted(parts, key=lambda part: part.student.tokens, reverse=True):
        lightest = loads.index(min(loads))
        ranks[lightest].append(part)
        loads[lightest] += part.student.tokens
    packs = [_first_fit(rank_parts, budget) for rank_parts in ranks]
    most = max(1, max(len(p) for p in packs))
    return [p + [[] for _ in range(most - len(p))] for p in packs]


def _split(group: Part, limit: int, budget: int, is_compared: bool) -> list[Part]:
    """Itself, where it fits `limit` tokens; otherwise parts that do, or one longer row, the longest first."""
    if group.fits(limit, budget):
        return [group]
    parts: list[Part] = []
    for row in sorted(group.rows, key=row_length, reverse=True):
        longer = Part.of([*parts[-1].rows, row], is_compared) if parts else None
        if longer is not None and longer.fits(limit, budget):
            parts[-1] = longer
        else:
            parts.append(Part.of([row], is_compared))
    return parts


class _Bin:
    """A pack that is being filled."""

    def __init__(self) -> None:
        self.places: list[int] = []
        self._student, self._teacher = Extent(), Extent()

    def takes(self, part: Part, budget: int) -> bool:
        """Whether the part fits beside what is there; an empty one takes any."""
        student, teacher = self._student.beside(part.student), self._teacher.beside(part.teacher)
        fits = student.tokens <= budget and student.fits(budget) and teacher.fits(OF_A_TEACHER * budget)
        return fits or not self.places

    def add(self, place: int, part: Part) -> None:
        self.places.append(place)
        self._student, self._teacher = self._student.beside(part.student), self._teacher.beside(part.teacher)


def _first_fit(parts: Sequence[Part], budget: int) -> list[list[TrainRow]]:
    """Packs, filled with the longest rows first; within one the parts keep their order."""
    bins: list[_Bin] = []
    for place in sorted(range(len(parts)), key=lambda place: parts[place].student.longest, reverse=True):
        fit = next((one for one in bins if one.takes(parts[place], budget)), None)
        if fit is None:
            bins.append(fit := _Bin())
        fit.add(place, parts[place])
    return [[row for place in sorted(one.places) for row in parts[place].rows] for one in bins]


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
