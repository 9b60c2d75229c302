"""Group advantages against the statistics module."""

import math
import statistics
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evidence.advantage import RewardSums, group_advantages, reward_sums, zero_variance_groups

relaxed = settings(max_examples=60)
rollouts = st.lists(st.tuples(st.one_of(st.none(), st.floats(-10, 10, width=32)), st.sampled_from("abc")), max_size=20)


def test_a_hand_computed_step() -> None:
    rewards, groups = [1.0, 0.0, 0.0, 1.0, 0.0, 1.0, None], ["a", "a", "a", "b", "a", "b", "b"]
    high, low = 0.75 / math.sqrt(0.1875), -0.25 / math.sqrt(0.1875)  # mean 1/4, population variance 3/16
    assert group_advantages(rewards, groups) == pytest.approx([high, low, low, 0.0, low, 0.0, None])
    assert zero_variance_groups(rewards, groups) == 1
    assert reward_sums(rewards, groups) == RewardSums(3.0, 6, 1)


@relaxed
@given(rollouts)
def test_each_group_is_standardised_by_itself(pairs: list[tuple[float | None, str]]) -> None:
    rewards, groups = [r for r, _ in pairs], [g for _, g in pairs]
    equal = 0
    found = group_advantages(rewards, groups)
    for group in set(groups):
        own = [(r, a) for r, a, g in zip(rewards, found, groups, strict=True) if g == group]
        known = [r for r, _ in own if r is not None]
        std = statistics.pstdev(known) if known else 0.0
        equal += bool(known) and len(set(known)) == 1
        for reward, advantage in own:
            if reward is None:
                assert advantage is None
            elif len(set(known)) == 1:
                assert advantage == 0.0
            else:
                assert advantage == pytest.approx((reward - statistics.fmean(known)) / std, rel=1e-6, abs=1e-9)
    assert zero_variance_groups(rewards, groups) == equal


@relaxed
@given(rollouts, st.randoms(use_true_random=False))
def test_the_order_of_the_rollouts_does_not_matter(pairs: list[tuple[float | None, str]], random: object) -> None:
    order = list(range(len(pairs)))
    random.shuffle(order)  # type: ignore[attr-defined]
    found = group_advantages(*zip(*pairs, strict=True)) if pairs else []
    shuffled = group_advantages([pairs[i][0] for i in order], [pairs[i][1] for i in order])
    assert shuffled == [found[i] for i in order]


def test_equal_rewards_have_no_variance_whatever_their_rounding() -> None:
    assert group_advantages([0.1] * 3, ["a"] * 3) == [0.0] * 3
    assert zero_variance_groups([0.1] * 3, ["a"] * 3) == 1


def test_rewards_are_read_as_a_shard_stores_them() -> None:
    rewards = [0.1, 0.2, 0.7]
    assert group_advantages(rewards, ["a"] * 3) == group_advantages([float(np.float32(r)) for r in rewards], ["a"] * 3)


def test_no_rewards_at_all() -> None:
    assert group_advantages([None, None], ["a", "b"]) == [None, None]
    assert zero_variance_groups([None, None], ["a", "b"]) == 0
    assert reward_sums([None, None], ["a", "b"]) is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_reward_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match=rf"^group b: reward: found {bad}, expected a finite number$"):
        group_advantages([1.0, bad], ["a", "b"])


@pytest.mark.parametrize("rewards", [[1.0], [1.0, 0.0, 1.0]])
@pytest.mark.parametrize("of", [group_advantages, zero_variance_groups, reward_sums])
def test_a_reward_has_a_group_and_a_group_a_reward(of: Callable[..., object], rewards: list[float]) -> None:
    with pytest.raises(ValueError, match=r"argument 2 is (longer|shorter)"):
        of(rewards, ["a", "b"])
