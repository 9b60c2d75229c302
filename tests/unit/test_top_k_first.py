"""The logits that are left by top-k and top-p, without a sort of the whole vocabulary: the bits that vLLM leaves."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from rollout.vllm_quirks.sampling import MOST, top_k_first

ROWS, VOCABULARY = 48, 49_152
P = 0.95


def sort_all(logits: Tensor, k: Tensor, p: Tensor, allow_cpu_sync: bool = False) -> Tensor:
    """The k largest logits of a row, and of these the largest that hold p of their probability; by a sort of all, as
    vLLM 0.32.0 does it (a contract test compares them)."""
    values, order = logits.sort(dim=1)
    least = values.gather(1, values.shape[1] - k.long().unsqueeze(1))
    values = torch.where(values < least, -torch.inf, values)
    beyond = values.softmax(1).cumsum(1) <= 1 - p.unsqueeze(1)
    beyond[:, -1] = False  # the largest is always kept
    return torch.empty_like(logits).scatter(1, order, values.masked_fill(beyond, -torch.inf))


class Counted:
    """`sort_all`, and the shapes that it was given."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, logits: Tensor, k: Tensor, p: Tensor, allow_cpu_sync: bool = False) -> Tensor:
        self.shapes.append(tuple(logits.shape))
        return sort_all(logits, k, p)


def logits_of(seed: int, spread: float = 4.0, rows: int = ROWS, vocabulary: int = VOCABULARY) -> Tensor:
    return spread * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))


def rounded(logits: Tensor) -> Tensor:
    """As a model of 16 bits computes them: many are equal."""
    return logits.bfloat16().float()


def same(k: int | Tensor, p: float | Tensor, logits: Tensor) -> Counted:
    counted, rows = Counted(), len(logits)
    k = torch.full((rows,), k, dtype=torch.int32) if isinstance(k, int) else k
    p = torch.full((rows,), p) if isinstance(p, float) else p
    mine = logits.clone()
    found = top_k_first(counted, mine, k, p, True)
    assert found is mine  # vLLM's writes into the logits that it gets
    assert torch.equal(found, sort_all(logits, k, p))
    return counted


@pytest.mark.parametrize("made", [lambda logits: logits, rounded], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("spread", [1.0, 4.0, 12.0])
@pytest.mark.parametrize("k", [1, 20, 64])
def test_what_is_left_has_the_sorts_bits(made: Callable[[Tensor], Tensor], spread: float, k: int) -> None:
    counted = same(k, P, made(logits_of(k, spread)))
    assert counted.shapes[0] == (ROWS, 64 if k <= 32 else 128)


def test_a_row_whose_logits_differ_is_not_sorted() -> None:
    assert same(20, P, logits_of(0)).shapes == [(ROWS, 64)]


def test_each_row_has_its_own_k_and_p() -> None:
    """None for a row is the whole vocabulary to vLLM, and a k beyond the bound is sorted too."""
    k = torch.tensor([1, 5, 20, 300, MOST, MOST + 1, VOCABULARY, 40] * 6, dtype=torch.int32)
    p = torch.tensor([0.01, 0.5, 0.9, 0.95, 0.999, 1.0] * 8)
    for made in (logits_of(1), rounded(logits_of(2))):
        assert max(rows for rows, width in same(k, p, made).shapes if width == VOCABULARY) >= 12


def test_nothing_is_left_out_by_a_p_of_1_but_what_the_exponential_makes_0() -> None:
    logits = logits_of(3)
    logits[0, :10] = 1e4
    logits[1, 7] = 1e4
    same(20, 1.0, logits)


def test_a_threshold_that_is_a_sum_itself_falls_on_the_same_side() -> None:
    """1 - p of each row is one of its cumulative sums: a sum in another order would be above or below it."""
    for width, spread in ((VOCABULARY, 1.0), (VOCABULARY - 33, 2.0), (50_257, 1.0)):
        logits = logits_of(4, spread, vocabulary=width)
        sums = logits.topk(20).values.flip(1)
        row = torch.full((ROWS, width), -float("inf"))
        row[:, -20:] = sums
        sums = row.softmax(1).cumsum(1)[:, -20:]
        for place in range(19):
            same(20, 1 - sums[:, place], logits)


def test_equal_logits_at_the_kth_are_all_kept_and_many_of_them_sorted() -> None:
    logits = logits_of(5)
    top = logits.topk(200, dim=1).indices
    for row, equal in enumerate((2, 20, 60, 200)):  # of the row's largest, from the 15th on
        logits[row, top[row, 15 : 15 + equal]] = logits[row, top[row, 15]].clone()
    shapes = same(20, 1.0, logits).shapes
    assert shapes == [(ROWS, 64), (2, VOCABULARY)]


def test_equal_logits_that_p_parts_are_sorted() -> None:
    """Ten equal ones of 0.1 each: p keeps five, and the sort says which."""
    logits = logits_of(6)
    logits[3, 100:110] = 90.0
    shapes = same(20, 0.45, logits).shapes
    assert shapes == [(ROWS, 64), (1, VOCABULARY)]


def test_a_row_with_fewer_allowed_tokens_than_k_is_sorted() -> None:
    logits = logits_of(7)
    logits[4, 3:] = -float("inf")
    assert same(20, P, logits).shapes == [(ROWS, 64), (1, VOCABULARY)]


def test_what_needs_no_sort_or_has_a_small_vocabulary_is_left_to_vllm() -> None:
    given = list[tuple[object, ...]]()

    def usual(*arguments: object) -> Tensor:
        given.append(arguments)
        return torch.zeros(1)

    small, large = logits_of(8, vocabulary=400), logits_of(8)
    k, p = torch.full((ROWS,), 20), torch.full((ROWS,), P)
    for logits, some_k, some_p in ((small, k, p), (large, None, p), (large, k, None), (large, k + VOCABULARY - 20, p)):
        partial(top_k_first, usual)(logits, some_k, some_p, allow_cpu_sync=True)
        assert len(given[-1]) == 4 and all(
            a is b for a, b in zip(given[-1], (logits, some_k, some_p, True), strict=True)
        )
    assert len(given) == 4
