"""The packs of a rank are as few as full ones, and about equal: the largest decides how much memory a step takes."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evidence.records import TrainRow
from learner import plan as planned
from learner.config import LearnerConfig
from learner.plan import plan, row_length
from tests.unit.test_student import make_row

BUDGET = LearnerConfig().micro_batch
Packs = list[list[list[TrainRow]]]


def groups_of(*groups: tuple[int, Sequence[int]]) -> list[TrainRow]:
    """Rows of (prompt tokens, response tokens of each of its rows)."""
    rows = []
    for seed, (prompt, responses) in enumerate(groups):
        first = make_row(prompt, 1, seed=seed)
        rows += [replace(make_row(1, size), prompt_ids=first.prompt_ids) for size in responses]
    return rows


def packed_tokens(pack: Sequence[TrainRow]) -> int:
    """Of a pack: each prompt once, and all of each response but its last token."""
    prompts = {row.prompt_ids.tobytes(): len(row.prompt_ids) for row in pack}
    return sum(prompts.values()) + sum(len(row.response_ids) - 1 for row in pack)


def sizes(ranks: Packs) -> list[list[int]]:
    return [[packed_tokens(pack) for pack in packs] for packs in ranks]


def filled(rows: Sequence[TrainRow], num_ranks: int, budget: int, is_compared: bool = False) -> Packs:
    """As `plan`, with the packs as full as the budget lets first fit make them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planned, "_even_bins", lambda parts, budget: planned._first_fit(parts, budget, budget))
        return plan(rows, num_ranks, budget, is_compared)


def like_a_step(prompts: int, samples: int, longest: int) -> list[TrainRow]:
    """Prompts of 34 to 45 tokens, and responses of a few tokens less than the longest allowed."""
    rng = np.random.default_rng(0)
    responses = [np.clip(rng.normal(longest - 4, 7, samples).astype(int), 8, longest) for _ in range(prompts)]
    return groups_of(*[(int(rng.integers(34, 46)), group.tolist()) for group in responses])


@pytest.mark.parametrize(
    ("rows", "full", "even"),
    [
        (like_a_step(4, 8, 40), [952, 262], [595, 619]),
        (like_a_step(8, 4, 40), [880, 493], [698, 675]),
        (like_a_step(8, 4, 32), [985, 132], [570, 547]),
    ],
    ids=["local-smoke", "persona", "facts"],
)
def test_a_recipes_step_takes_as_many_packs_and_the_largest_is_about_half_of_it(
    rows: list[TrainRow], full: list[int], even: list[int]
) -> None:
    assert sizes(filled(rows, 1, BUDGET)) == [full]
    assert sizes(plan(rows, 1, BUDGET)) == [even]


def test_three_packs_where_halves_do_not_fit() -> None:
    """Parts of 60 tokens, and a budget of 130: five of them are two, two and one either way."""
    rows = groups_of(*[(10, [51])] * 5)
    assert sizes(plan(rows, 1, 130)) == sizes(filled(rows, 1, 130)) == [[120, 120, 60]]
    assert sizes(filled(rows, 1, 250)) == [[240, 60]]
    assert sizes(plan(rows, 1, 250)) == [[180, 120]]


def test_a_row_longer_than_the_budget_leaves_the_rest_as_it_is() -> None:
    rows = groups_of((10, [291]), *[(10, [51])] * 5)
    assert sizes(plan(rows, 1, 250)) == sizes(filled(rows, 1, 250)) == [[300, 240, 60]]


groups = st.lists(
    st.tuples(st.integers(1, 12), st.lists(st.integers(1, 40), min_size=1, max_size=6)), min_size=1, max_size=12
)


@settings(deadline=None, max_examples=100)
@given(groups, st.integers(1, 4), st.integers(1, 200), st.booleans())
def test_even_packs_hold_each_row_once_and_are_neither_more_nor_larger_than_full_ones(
    groups: list[tuple[int, list[int]]], num_ranks: int, budget: int, is_compared: bool
) -> None:
    rows = groups_of(*groups)
    even, full = (rule(rows, num_ranks, budget, is_compared) for rule in (plan, filled))
    for mine, former in zip(even, full, strict=True):
        assert sorted(id(row) for pack in mine for row in pack) == sorted(id(row) for pack in former for row in pack)
        assert len(mine) <= len(former)
    for before, after in zip(sizes(full), sizes(even), strict=True):
        assert max(after) <= max(before) and sum(after) <= sum(before)
    for pack in (pack for packs in even for pack in packs):
        assert packed_tokens(pack) <= budget or (len(pack) == 1 and row_length(pack[0]) > budget)
