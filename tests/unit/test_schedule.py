"""The learning rate of every optimizer step of a run."""

from itertools import pairwise

import pytest

from learner.schedule import SHAPES, rate_factor


def rates(shape: str, end: float, warmup: int, updates: int) -> list[float]:
    factor = rate_factor(shape, end, warmup, updates)
    return [factor(step) for step in range(updates)]


@pytest.mark.parametrize("end", [0.0, 0.25])
def test_a_constant_rate_is_lr_itself_after_the_warm_up(end: float) -> None:
    assert rates("constant", end, 4, 7) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]


def test_a_line_falls_by_the_same_each_step_and_the_last_step_still_learns() -> None:
    assert rates("linear", 0.0, 0, 4) == [1.0, 0.75, 0.5, 0.25]
    assert rates("linear", 0.0, 2, 6) == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert rates("linear", 0.5, 0, 4) == [1.0, 0.875, 0.75, 0.625]


def test_a_cosine_is_half_way_down_in_the_middle() -> None:
    found = rates("cosine", 0.0, 0, 4)
    assert found == pytest.approx([1.0, 0.5 + 2**-1.5, 0.5, 0.5 - 2**-1.5])


@pytest.mark.parametrize("shape", sorted(set(SHAPES) - {"constant"}))
@pytest.mark.parametrize(("warmup", "updates"), [(0, 1), (8, 32), (8, 8), (9, 5), (1, 100)])
def test_every_rate_is_above_0_and_none_rises_after_the_warm_up(shape: str, warmup: int, updates: int) -> None:
    found = rates(shape, 0.0, warmup, updates)
    assert all(0 < rate <= 1 for rate in found)
    assert all(after <= before for before, after in pairwise(found[max(0, warmup - 1) :]))


def test_a_step_beyond_the_run_stays_at_the_end() -> None:
    """As after the last one, when the rate of a next is asked for."""
    assert rate_factor("linear", 0.1, 2, 10)(10) == rate_factor("linear", 0.1, 2, 10)(50) == 0.1
