"""Losses as pure functions over per-token streams, in one literal table.

Legend: N = response tokens of one micro-batch, concatenated over its rows. All tensors are float32 [N].
The learner sees weights, never why they are what they are.

Written in tensors' own methods, so that a recipe's names are checked on a machine without torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from learner.divergence import Contributions, forward_kl, jsd, reverse_kl

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class TokenInputs:
    """What a loss may look at, per response token."""

    logprobs_N: Tensor  # log pi_theta(y|x), carries the gradient
    old_logprobs_N: Tensor  # log pi_old(y|x), detached; equals logprobs_N in value with one update a batch
    teacher_context_logprobs_N: Tensor  # log pi_T(y|x,r)
    evidence_N: Tensor  # e_t
    base_logprobs_N: Tensor  # log pi_base(y|x), the anchor's reference
    weight_N: Tensor  # m_t * w_t
    advantage_N: Tensor  # of the whole rollout, on each of its tokens; NaN where its row has none
    scale_N: Tensor  # the policy term's share of each token: 1/N over all ranks and micro-batches, or another
    anchor_scale_N: Tensor  # 1/N_resp, or 0 where the anchor does not hold the token
    sampler_logprobs_N: Tensor  # log mu(y|x) of the engine that sampled the row from x; NaN where it saw another prompt
    divergence_N: Tensor | None  # of pi_T(.|x,r) and pi_theta(.|x), with a gradient; None: the objective has none


@dataclass(frozen=True)
class ObjectiveSettings:
    """Keys of `LearnerConfig` that a loss reads. The ratio stays in [1 - clip_low, 1 + clip_high]."""

    beta_kl: float
    clip_low: float
    clip_high: float
    evidence_scale: float = 1.0
    evidence_bound: float = 0.0
    importance_clip: float = 0.0


Metrics = dict[str, "Tensor"]
PolicyTerm = Callable[[TokenInputs, ObjectiveSettings], tuple["Tensor", Metrics]]


def k3(d: Tensor) -> Tensor:
    """The k3 estimator exp(d) - d - 1 of a Kullback-Leibler divergence; d = log reference - log policy."""
    return d.expm1() - d


def anchor(inputs: TokenInputs) -> Tensor:
    """Sum of k3 / N_resp over all response tokens, whatever the mask (arXiv 2605.23493), or over those whose scale is
    not 0."""
    d_N = (inputs.base_logprobs_N - inputs.logprobs_N).where(inputs.anchor_scale_N != 0, 0.0)  # 0 of infinity is none
    return (inputs.anchor_scale_N * k3(d_N)).sum()


def k1(inputs: TokenInputs, settings: ObjectiveSettings) -> tuple[Tensor, Metrics]:
    """The policy gradient of A_t = log pi_T(y|x,r) - log pi_theta(y|x), detached: the K1 estimate of the reverse KL.

    Its literal form must not be back-propagated, since its gradient does not depend on the teacher.

    With evidence_scale = lambda the target is log pi_T(y|x,r) + (lambda - 1) e_t. For teacher_contrast evidence that is
    log pi_T(y|x) + lambda e_t, reward extrapolation (arXiv 2602.12125) with the evidence as the reward. With an
    evidence_bound c, what goes beyond the teacher is (lambda - 1) clip(e_t, -c, c).
    """
    target_N, scale, bound = inputs.teacher_context_logprobs_N, settings.evidence_scale, settings.evidence_bound
    if scale != 1:
        beyond_N = inputs.evidence_N.clamp(-bound, bound) if bound else inputs.evidence_N
        target_N = target_N + (scale - 1) * beyond_N
    return _clipped_surrogate(target_N - inputs.old_logprobs_N, inputs, settings)


def grpo(inputs: TokenInputs, settings: ObjectiveSettings) -> tuple[Tensor, Metrics]:
    """The policy gradient of a rollout's advantage in its group (GRPO, arXiv 2402.03300); with RLSD's weights, RLSD
    with a verifier (arXiv 2604.03128)."""
    return _clipped_surrogate(inputs.advantage_N, inputs, settings)


def _clipped_surrogate(advantage_N: Tensor, inputs: TokenInputs, settings: ObjectiveSettings) -> tuple[Tensor, Metrics]:
    """- sum_t scale_t sg(c_t m_t w_t A_t) ratio_t, clipped as PPO does (arXiv 1707.06347), on two sides of their own;
    c_t = 1 without an importance_clip."""
    corrections_N, metrics = importance_weights(inputs, settings)
    advantage_N = advantage_N.detach() * inputs.weight_N * corrections_N
    ratio_N = (inputs.logprobs_N - inputs.old_logprobs_N).exp()
    free_N = advantage_N * ratio_N
    bound_N = advantage_N * ratio_N.clamp(1 - settings.clip_low, 1 + settings.clip_high)
    loss = -(inputs.scale_N * free_N.minimum(bound_N)).sum()
    return loss, metrics | {"clipped_tokens": (bound_N < free_N).sum()}


def importance_weights(inputs: TokenInputs, settings: ObjectiveSettings) -> tuple[Tensor, Metrics]:
    """c_t = min(pi_old(y_t|x) / mu(y_t|x), importance_clip), without a gradient: the truncated importance weight of
    V-trace (arXiv 1802.01561, section 4.1). 1 where the sampler saw another prompt, or nothing is corrected.

    The metrics are sums over the tokens with a weight whose sampler saw x.
    """
    if settings.importance_clip == 0:
        return inputs.weight_N.new_ones(()), {}
    is_plain_N = ~inputs.sampler_logprobs_N.isnan()
    ratio_N = (inputs.old_logprobs_N - inputs.sampler_logprobs_N).where(is_plain_N, 0.0).exp().detach()
    corrections_N = ratio_N.clamp(max=settings.importance_clip)
    counted_N = is_plain_N & (inputs.weight_N != 0)
    clipped_N = counted_N & (ratio_N > settings.importance_clip)
    return corrections_N, {
        "importance_weight": (corrections_N * counted_N).sum(),
        "importance_clipped": clipped_N.sum(),
    }


def weighted_divergence(inputs: TokenInputs, settings: ObjectiveSettings) -> tuple[Tensor, Metrics]:
    """sum_t scale_t m_t w_t D_t, an ordinary loss and no policy gradient: D_t is differentiated (arXiv 2306.13649)."""
    assert inputs.divergence_N is not None
    return (inputs.scale_N * inputs.weight_N * inputs.divergence_N).sum(), {}


@dataclass(frozen=True)
class Objective:
    """A policy term, and what it needs beside log-probs and weights. Every objective may have the anchor."""

    policy: PolicyTerm
    needs_advantage: bool = False  # of each row
    scales_evidence: bool = False  # reads learner.evidence_scale
    corrects: bool = False  # is a policy gradient, and reads learner.importance_clip
    contributions: Contributions | None = None  # compares the teacher's whole distribution, which the learner then runs

    def __call__(self, inputs: TokenInputs, settings: ObjectiveSettings) -> tuple[Tensor, Metrics]:
        """(policy term + beta_kl * anchor, metrics that add up over micro-batches and ranks)."""
        policy, metrics = self.policy(inputs, settings)
        metrics = {"policy_loss": policy.detach(), **metrics}
        if settings.beta_kl == 0:
            return policy, metrics
        kl = anchor(inputs)
        return policy + settings.beta_kl * kl, metrics | {"anchor_kl": kl.detach()}


OBJECTIVES: dict[str, Objective] = {
    "k1": Objective(k1, scales_evidence=True, corrects=True),
    "grpo": Objective(grpo, needs_advantage=True, corrects=True),
    "forward_kl": Objective(weighted_divergence, contributions=forward_kl),
    "reverse_kl": Objective(weighted_divergence, contributions=reverse_kl),
    "jsd": Objective(weighted_divergence, contributions=jsd),
}


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
