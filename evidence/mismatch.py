"""How far the learner is from the engine that sampled: both run the same weights, each with its own kernels.

Legend: T = response tokens of one rollout. Sums are float64.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from evidence.records import Floats, TrainRow
from evidence.sums import Sums


@dataclass(frozen=True)
class Mismatch(Sums):
    """Sums over tokens that an engine sampled under x, of plain rollouts.

    d = log pi_learner(y|x,y<t) - log pi_engine(y|x,y<t). Over tokens that the engine sampled, the mean of
    exp(d) - d - 1 estimates KL(pi_engine || pi_learner) without bias, and no term is negative: the k3 estimator of
    Schulman, "Approximating KL Divergence" (2020), whose r is pi_learner / pi_engine and whose samples are the
    engine's. The other direction would need samples of the learner. At another temperature than 1 the tokens come from
    another distribution, and with a lag the engine held older weights: then it is a distance, and no estimate of a KL.
    """

    tokens: Annotated[int, "tokens", "of plain rollouts that the learner ran"] = 0
    k3: Annotated[float, "nats", "sum of exp(d) - d - 1, d = learner's log-prob - engine's"] = 0.0
    abs_difference: Annotated[float, "nats", "sum of |d|"] = 0.0

    def means(self) -> Mapping[str, float | None]:
        """Nats a token; None over nothing."""
        return {
            "mismatch_k3": self.k3 / self.tokens if self.tokens else None,
            "mismatch_abs": self.abs_difference / self.tokens if self.tokens else None,
        }


def mismatch(learner: Floats, engine: Floats) -> Mismatch:
    """The sums of one plain rollout, from both sides' log-probs [T] of its tokens under x.

    ValueError when their shapes differ.
    """
    if learner.shape != engine.shape:
        raise ValueError(f"sampler_logprobs: found shape {engine.shape}, expected {learner.shape} as the learner's")
    d = learner.astype(np.float64) - engine
    return Mismatch(d.size, float((np.expm1(d) - d).sum()), float(np.abs(d).sum()))


def sampled_under_x(row: TrainRow) -> Floats:
    """log pi_engine(y|x) [T] of the engine that sampled the row; NaN where it saw (x, r), or nothing did."""
    if row.guided or row.sampler_logprobs is None:
        return np.full(len(row.response_ids), np.nan, np.float32)
    return row.sampler_logprobs
