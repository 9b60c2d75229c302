"""From a verifier's rewards to each rollout's advantage within its group (GRPO, as RLSD uses it: arXiv 2604.03128).

A group is the samples of one prompt in one step. Rewards are read as float32, as a shard stores them, so that
advantages recomputed from a shard are those of the step.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

Rewards = Sequence[float | None]  # one a rollout; None where no verifier spoke


def group_advantages(rewards: Rewards, group_ids: Sequence[str]) -> list[float | None]:
    """A = (R - mean) / std over the rollout's group, with the population's std; None where the reward is None.

    Rollouts without a reward count in no mean. A group whose rewards are all equal has A = 0. A does not depend on
    the order of the rollouts. ValueError when a reward is not finite.
    """
    moments = {group: _mean_and_std(values) for group, values in _groups(rewards, group_ids).items()}
    return [
        None if reward is None else _standardised(float(np.float32(reward)), *moments[group])
        for reward, group in zip(rewards, group_ids, strict=True)
    ]


def zero_variance_groups(rewards: Rewards, group_ids: Sequence[str]) -> int:
    """How many groups have rewards, and all of them equal: their policy gradient under A is 0."""
    return sum(len(set(values)) == 1 for values in _groups(rewards, group_ids).values())


@dataclass(frozen=True)
class RewardSums:
    """A step's rewards."""

    total: Annotated[float, "", "sum of the rewards"]
    count: Annotated[int, "rollouts", "that have a reward"]
    zero_variance_groups: Annotated[int, "groups", "whose rewards are all equal, so that no advantage is left"]


def reward_sums(rewards: Rewards, group_ids: Sequence[str]) -> RewardSums | None:
    """The sums over the rewards that there are; None where there is none."""
    known = [reward for reward in rewards if reward is not None]
    return RewardSums(math.fsum(known), len(known), zero_variance_groups(rewards, group_ids)) if known else None


def _groups(rewards: Rewards, group_ids: Sequence[str]) -> dict[str, list[float]]:
    groups: dict[str, list[float]] = {}
    for reward, group in zip(rewards, group_ids, strict=True):
        if reward is None:
            continue
        value = float(np.float32(reward))
        if not math.isfinite(value):
            raise ValueError(f"group {group}: reward: found {reward}, expected a finite number")
        groups.setdefault(group, []).append(value)
    return groups


def _mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Of float32 values: the mean of equal ones is exact, so that their std is 0 and no rounding error."""
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))


def _standardised(value: float, mean: float, std: float) -> float:
    return (value - mean) / std if std else 0.0
