"""Which rows of a step go together: micro-batches of the learner's ranks, the same plan on every rank.

Legend: S = tokens of one packed sequence, U = of its rows before they were packed.
Rows with the same prompt, such as the samples of a group, share it: it is packed, and run, once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from evidence.records import TrainRow
from learner.config import UNPACKED

# Where attention pads, all rows of a pack are as long as the longest for the time of a layer, which takes memory
# (`UNPACKED`); and time, the more the longer they are: attention to 16 * SPAN tokens takes a layer that is 700 wide as
# long as all else.
SPAN = 512  # times the budget: the most that the tokens of padding times those of the longest row may be
NEAR = 64  # of the budget: how near the largest pack comes to the least that it can be, for the time of planning
OF_A_TEACHER = 4  # times as much of each for what a frozen teacher reads: no backward pass keeps any of it


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
    rows that are about as long as each other. The packs of a rank are as few as the budget asks for, and about equal:
    the largest decides how much memory a step takes.

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
    packs = [[one.rows for one in _even_bins(rank_parts, budget)] for rank_parts in ranks]
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
        self._parts: dict[int, Part] = {}
        self._student, self._teacher = Extent(), Extent()

    @property
    def tokens(self) -> int:
        """S: a prompt that parts of it share is run once."""
        prompts = [part.rows[0].prompt_ids for part in self._parts.values()]
        once = {prompt.tobytes(): len(prompt) for prompt in prompts}
        return self._student.tokens - sum(map(len, prompts)) + sum(once.values())

    @property
    def rows(self) -> list[TrainRow]:
        """The parts in the order of their places."""
        return [row for _, part in sorted(self._parts.items()) for row in part.rows]

    def takes(self, part: Part, tokens: int, budget: int) -> bool:
        """Whether the part fits beside what is there, within `tokens` and the bounds of `budget`; an empty one takes
        any."""
        student, teacher = self._student.beside(part.student), self._teacher.beside(part.teacher)
        fits = student.tokens <= tokens and student.fits(budget) and teacher.fits(OF_A_TEACHER * budget)
        return fits or not self._parts

    def add(self, place: int, part: Part) -> None:
        self._parts[place] = part
        self._student, self._teacher = self._student.beside(part.student), self._teacher.beside(part.teacher)


def _first_fit(parts: Sequence[Part], tokens: int, budget: int, most: int | None = None) -> list[_Bin]:
    """Packs of at most `tokens`, or one longer part, filled with the longest rows first; none where they would be more
    than `most`."""
    bins: list[_Bin] = []
    for place in sorted(range(len(parts)), key=lambda place: parts[place].student.longest, reverse=True):
        fit = next((one for one in bins if one.takes(parts[place], tokens, budget)), None)
        if fit is None:
            if len(bins) == most:
                return []
            bins.append(fit := _Bin())
        fit.add(place, parts[place])
    return bins


def _even_bins(parts: Sequence[Part], budget: int) -> list[_Bin]:
    """No more packs than full ones of `budget` would be, no more tokens of prompts that are run again, and the largest
    pack about as small as first fit can make it."""
    bins = _first_fit(parts, budget, budget)
    if len(bins) < 2:
        return bins
    sizes = [part.student.tokens for part in parts]
    count, tokens, most = _cost(bins)
    least, near = max(max(sizes), -(-tokens // count)), max(1, budget // NEAR)
    while most - least >= near:
        middle = (least + most) // 2
        tried = _first_fit(parts, middle, budget, count)
        if tried and all(mine <= full for mine, full in zip(_cost(tried), _cost(bins), strict=True)):
            bins, most = tried, _cost(tried)[-1]
        else:
            least = middle + 1
    return bins


def _cost(bins: Sequence[_Bin]) -> tuple[int, int, int]:
    """How many packs, their tokens, and the most of one."""
    sizes = [one.tokens for one in bins]
    return len(sizes), sum(sizes), max(sizes)
