"""Who is guided: exact counts, order, independence, and what is refused."""

import numpy as np
import pytest

from rollout.guidance import SPLITS, guided_flags


@pytest.mark.parametrize(
    ("n", "fraction", "guided"),
    [
        (8, 0.5, 4),
        (8, 0.125, 1),
        (8, 1.0, 8),
        (8, 0.0, 0),
        (4, 0.125, 1),
        (5, 0.5, 3),
        (1, 0.5, 1),
        (3, 0.1, 0),
        (0, 0.5, 0),
    ],
)
def test_fixed_guides_the_rounded_share_first(n: int, fraction: float, guided: int) -> None:
    flags = guided_flags(n, fraction, "fixed", np.random.default_rng(0))
    assert flags == [True] * guided + [False] * (n - guided)


def test_fixed_does_not_consume_random_numbers() -> None:
    rng = np.random.default_rng(3)
    guided_flags(8, 0.5, "fixed", rng)
    assert rng.random() == np.random.default_rng(3).random()


def test_bernoulli_draws_each_sample_independently() -> None:
    flags = np.array(guided_flags(20_000, 0.3, "bernoulli", np.random.default_rng(0)))
    assert abs(flags.mean() - 0.3) < 0.015
    assert abs(np.corrcoef(flags[:-1], flags[1:])[0, 1]) < 0.03


def test_bernoulli_follows_the_generator() -> None:
    first, again, other = (guided_flags(64, 0.5, "bernoulli", np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert all(type(flag) is bool for flag in first)


@pytest.mark.parametrize(("fraction", "expected"), [(0.0, False), (1.0, True)])
def test_the_ends_are_exact_in_both_splits(fraction: float, expected: bool) -> None:
    for split in SPLITS:
        assert guided_flags(500, fraction, split, np.random.default_rng(0)) == [expected] * 500


@pytest.mark.parametrize("fraction", [-0.01, 1.01, float("nan"), float("inf")])
def test_a_fraction_outside_0_to_1_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match=r"guided_fraction: found .*expected a number from 0 to 1"):
        guided_flags(8, fraction, "fixed", np.random.default_rng(0))


def test_an_unknown_split_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="guided_split: found 'half', expected one of bernoulli, fixed"):
        guided_flags(8, 0.5, "half", np.random.default_rng(0))


def test_a_negative_count_is_refused() -> None:
    with pytest.raises(ValueError, match="samples_per_prompt: found -1"):
        guided_flags(-1, 0.5, "fixed", np.random.default_rng(0))
