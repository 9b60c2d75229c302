"""Losses as pure functions over per-token streams, in one literal table.

Legend: N = response tokens of one micro-batch, concatenated over its rows. All tensors are float32 [N].
The learner sees weights, never why they are what they are.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class TokenInputs:
    """What a loss may look at, per response token."""

    logprobs_N: Tensor  # log pi_theta(y|x), carries the gradient
    old_logprobs_N: Tensor  # log pi_old(y|x), detached; equals logprobs_N in value with one update a batch
    teacher_context_logprobs_N: Tensor  # log pi_T(y|x,r)
    base_logprobs_N: Tensor  # log pi_base(y|x), the anchor's reference
    weight_N: Tensor  # m_t * w_t
    scale_N: Tensor  # the policy term's share of each token: 1/N over all ranks and micro-batches, or another
    anchor_scale_N: Tensor  # 1/N_resp


@dataclass(frozen=True)
class ObjectiveSettings:
    beta_kl: float
    clip_ratio: float


LossFn = Callable[[TokenInputs, ObjectiveSettings], tuple[Tensor, dict[str, Tensor]]]


def k3(d: Tensor) -> Tensor:
    """The k3 estimator exp(d) - d - 1 of a Kullback-Leibler divergence; d = log reference - log policy."""
    return torch.expm1(d) - d


def anchor(inputs: TokenInputs) -> Tensor:
    """Sum over all response tokens of k3 / N_resp, whatever the mask (arXiv 2605.23493)."""
    return (inputs.anchor_scale_N * k3(inputs.base_logprobs_N - inputs.logprobs_N)).sum()


def k1_policy_gradient(inputs: TokenInputs, settings: ObjectiveSettings) -> tuple[Tensor, dict[str, Tensor]]:
    """- sum_t scale_t sg(m_t w_t A_t) ratio_t, clipped as PPO does, plus beta_kl times the anchor.

    A_t = log pi_T(y|x,r) - log pi_theta(y|x), detached: the K1 estimate of the reverse KL as a policy gradient.
    Its literal form must not be back-propagated, since its gradient does not depend on the teacher.
    """
    advantage_N = (inputs.teacher_context_logprobs_N - inputs.old_logprobs_N).detach() * inputs.weight_N
    ratio_N = torch.exp(inputs.logprobs_N - inputs.old_logprobs_N)
    clipped_N = ratio_N.clamp(1 - settings.clip_ratio, 1 + settings.clip_ratio)
    surrogate_N = torch.minimum(advantage_N * ratio_N, advantage_N * clipped_N)
    policy = -(inputs.scale_N * surrogate_N).sum()
    metrics = {"policy_loss": policy.detach()}
    if settings.beta_kl == 0:
        return policy, metrics
    kl = anchor(inputs)
    return policy + settings.beta_kl * kl, metrics | {"anchor_kl": kl.detach()}


OBJECTIVES: dict[str, LossFn] = {"k1": k1_policy_gradient}


@dataclass(frozen=True)
class BatchCounts:
    """Counts over the whole step, all ranks and micro-batches: what a denominator may divide by."""

    tokens: int
    kept: int
    rows: int


# Each gives the policy term's scale of a token in a row of `row_tokens` response tokens.
DENOMINATORS: dict[str, Callable[[BatchCounts, int], float]] = {
    "response": lambda counts, row_tokens: 1.0 / max(counts.tokens, 1),
    "kept": lambda counts, row_tokens: 1.0 / max(counts.kept, 1),
    "sequence_mean": lambda counts, row_tokens: 1.0 / (max(counts.rows, 1) * max(row_tokens, 1)),
    "sum": lambda counts, row_tokens: 1.0,
}
