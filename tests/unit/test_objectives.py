"""Losses against float64 loops written out by hand: values, gradients, clipping, denominators."""

import math
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evidence.records import TrainRow
from learner.batches import count, pack
from learner.config import LearnerConfig
from learner.divergence import forward_kl, jsd, reverse_kl
from learner.objectives import DENOMINATORS, OBJECTIVES, BatchCounts, Objective, ObjectiveSettings, TokenInputs, k3

K1 = OBJECTIVES["k1"]
GRPO = OBJECTIVES["grpo"]
LOW, HIGH = 0.2, 0.28
PLAIN = ObjectiveSettings(beta_kl=0.0, clip_low=LOW, clip_high=HIGH)
ANCHORED = ObjectiveSettings(beta_kl=0.05, clip_low=LOW, clip_high=HIGH)

# (log ratio, advantage): both signs at, inside and outside both clips. The ratios of 0.22 and -0.25 are as far from 1
# as one clip allows and the other does not.
CORNERS = [(shift, gap) for shift in (0.0, 0.1, -0.1, 0.22, -0.25, 0.5, -0.5) for gap in (1.5, -1.5)]


def inputs(
    dtype: torch.dtype = torch.float64, *, ratio_is_one: bool = False, num: int = 40, seed: int = 0
) -> TokenInputs:
    """Random tokens behind the CORNERS; a third of them masked, the others softly weighted."""
    random = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(CORNERS) + num, generator=random, dtype=torch.float64)

    old, shift, gap, advantage = uniform(-6, -0.1), uniform(-0.6, 0.6), uniform(-3, 3), uniform(-2, 2)
    corners = torch.tensor(CORNERS, dtype=torch.float64)
    shift[: len(CORNERS)] = corners[:, 0]
    gap[: len(CORNERS)] = advantage[: len(CORNERS)] = corners[:, 1]
    weight = torch.where(uniform(0, 1) < 1 / 3, 0.0, uniform(0.8, 1.2))
    weight[: len(CORNERS)] = 1.0
    logprobs = old.clone() if ratio_is_one else old + shift
    made = TokenInputs(
        logprobs_N=logprobs,
        old_logprobs_N=old,
        teacher_context_logprobs_N=old + gap,
        evidence_N=uniform(-2, 5),
        base_logprobs_N=old + uniform(-1, 1),
        weight_N=weight,
        advantage_N=advantage,
        scale_N=uniform(0.01, 0.02),
        anchor_scale_N=uniform(0.01, 0.02),
        sampler_logprobs_N=torch.where(uniform(0, 1) < 1 / 3, math.nan, old + uniform(-1, 1)),
        divergence_N=uniform(0, 4),
    )
    made = TokenInputs(**{name: tensor.to(dtype) for name, tensor in vars(made).items()})
    return replace(made, logprobs_N=made.logprobs_N.requires_grad_())


def by_hand(
    name: str, tokens: TokenInputs, beta: float, scale: float = 1.0, cap: float = 0.0, bound: float = math.inf
) -> tuple[float, list[float]]:
    """(loss, d loss / d logprob) of arXiv 2605.23493 (k1) or of a clipped GRPO surrogate, a token at a time."""
    columns = (getattr(tokens, f"{name}_N").tolist() for name in (
        "logprobs", "old_logprobs", "teacher_context_logprobs", "base_logprobs", "weight", "advantage", "scale",
        "anchor_scale", "evidence", "sampler_logprobs",
    ))  # fmt: skip
    loss, gradient = 0.0, []
    for new, old, teacher, base, weight, of_rollout, share, anchor_scale, e, sampler in zip(*columns, strict=True):
        beyond = (scale - 1) * math.copysign(min(abs(e), bound), e)
        advantage = weight * {"k1": teacher + beyond - old, "grpo": of_rollout}[name]
        if cap and not math.isnan(sampler):
            advantage *= min(math.exp(old - sampler), cap)
        ratio = math.exp(new - old)
        is_clipped = ratio > 1 + HIGH if advantage > 0 else ratio < 1 - LOW
        used = (1 + HIGH if advantage > 0 else 1 - LOW) if is_clipped else ratio
        loss -= share * advantage * used
        slope = 0.0 if is_clipped else -share * advantage * ratio
        d = base - new
        loss += beta * anchor_scale * (math.exp(d) - d - 1)
        gradient.append(slope + beta * anchor_scale * (1 - math.exp(d)))
    return loss, gradient


def gradient_of(loss: Callable[[TokenInputs], Tensor], tokens: TokenInputs) -> Tensor:
    (gradient,) = torch.autograd.grad(loss(tokens), tokens.logprobs_N)
    return gradient


@pytest.mark.parametrize("cap", [1.0, 1.5])
@pytest.mark.parametrize("name", ["k1", "grpo"])
def test_an_importance_weight_is_truncated_and_only_where_the_sampler_saw_x(name: str, cap: float) -> None:
    tokens = inputs()
    loss, metrics = OBJECTIVES[name](tokens, replace(ANCHORED, importance_clip=cap))
    expected, slopes = by_hand(name, tokens, 0.05, cap=cap)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert torch.autograd.grad(loss, tokens.logprobs_N)[0].tolist() == pytest.approx(slopes, rel=1e-9, abs=1e-15)
    pairs = zip(
        tokens.old_logprobs_N.tolist(), tokens.sampler_logprobs_N.tolist(), tokens.weight_N.tolist(), strict=True
    )
    ratios = [math.exp(old - sampler) for old, sampler, weight in pairs if weight and not math.isnan(sampler)]
    assert 0 < sum(ratio > cap for ratio in ratios) < len(ratios)
    assert metrics["importance_weight"].item() == pytest.approx(sum(min(ratio, cap) for ratio in ratios))
    assert metrics["importance_clipped"].item() == sum(ratio > cap for ratio in ratios)


def test_an_engine_that_agrees_is_not_clipped() -> None:
    """Its ratio is 1, which is the least clip that may be set: at the clip, and not above it."""
    tokens = replace(inputs(), sampler_logprobs_N=inputs().old_logprobs_N)
    corrected = replace(PLAIN, importance_clip=1.0)
    loss, metrics = K1(tokens, corrected)
    assert metrics["importance_clipped"].item() == 0
    assert metrics["importance_weight"].item() == tokens.weight_N.count_nonzero().item()
    assert loss.item() == pytest.approx(by_hand("k1", tokens, 0.0)[0], rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("setting", [PLAIN, ANCHORED])
@pytest.mark.parametrize("ratio_is_one", [True, False])
@pytest.mark.parametrize("name", ["k1", "grpo"])
def test_a_policy_gradient_equals_the_loop(
    name: str, setting: ObjectiveSettings, ratio_is_one: bool, dtype: torch.dtype
) -> None:
    tokens, objective = inputs(dtype, ratio_is_one=ratio_is_one), OBJECTIVES[name]
    loss, gradient = by_hand(name, tokens, setting.beta_kl)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    found, _ = objective(tokens, setting)
    assert found.item() == pytest.approx(loss, abs=tolerance)
    assert gradient_of(lambda t: objective(t, setting)[0], tokens).tolist() == pytest.approx(gradient, abs=tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("scale", [0.5, 2.0, 10.0])
@pytest.mark.parametrize("ratio_is_one", [True, False])
def test_scaled_evidence_equals_the_loop(ratio_is_one: bool, scale: float, dtype: torch.dtype) -> None:
    """A_t = log pi_T(y|x) + lambda e_t - log pi_theta(y|x), the first and the last token among the others."""
    tokens, setting = inputs(dtype, ratio_is_one=ratio_is_one), replace(ANCHORED, evidence_scale=scale)
    loss, gradient = by_hand("k1", tokens, setting.beta_kl, scale)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    found, _ = K1(tokens, setting)
    assert found.item() == pytest.approx(loss, abs=tolerance)
    slopes = gradient_of(lambda t: K1(t, setting)[0], tokens).tolist()
    assert slopes == pytest.approx(gradient, abs=tolerance)
    unscaled = gradient_of(lambda t: K1(t, ANCHORED)[0], tokens).tolist()
    moved = [slope != other for slope, other in zip(slopes, unscaled, strict=True)]
    assert moved == tokens.weight_N.ne(0).tolist() or not ratio_is_one  # a clip may hide it


@pytest.mark.parametrize("bound", [0.05, 0.3, 100.0])
@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_bounded_evidence_equals_the_loop(scale: float, bound: float) -> None:
    """A_t = log pi_T(y|x,r) + (lambda - 1) clip(e_t, -c, c) - log pi_theta(y|x), on both sides of the bound."""
    tokens, setting = inputs(torch.float64), replace(ANCHORED, evidence_scale=scale, evidence_bound=bound)
    e_N = tokens.evidence_N[tokens.weight_N != 0].abs()
    assert (e_N > 0.3).any() and (e_N < 0.3).any() and (e_N < 100).all()
    loss, gradient = by_hand("k1", tokens, setting.beta_kl, scale, bound=bound)
    assert K1(tokens, setting)[0].item() == pytest.approx(loss, abs=1e-12)
    assert gradient_of(lambda t: K1(t, setting)[0], tokens).tolist() == pytest.approx(gradient, abs=1e-12)


def test_a_scale_of_one_is_the_method_bit_for_bit() -> None:
    """Whatever the evidence is, also where a sum with it would round, and where no product with it is a number."""
    tokens = inputs(torch.float32)
    odd = replace(tokens, evidence_N=torch.full_like(tokens.evidence_N, math.inf))
    one = replace(ANCHORED, evidence_scale=1.0)
    assert torch.equal(K1(odd, one)[0], K1(tokens, ANCHORED)[0])
    assert torch.equal(gradient_of(lambda t: K1(t, one)[0], odd), gradient_of(lambda t: K1(t, ANCHORED)[0], tokens))


def test_evidence_of_zero_has_no_scale() -> None:
    """A row without a context: the target is the teacher's, which is then the reference itself."""
    tokens = replace(inputs(), evidence_N=torch.zeros_like(inputs().evidence_N))
    scaled = replace(ANCHORED, evidence_scale=3.0)
    assert torch.equal(K1(tokens, scaled)[0], K1(tokens, ANCHORED)[0])


@pytest.mark.parametrize("objective", [K1, GRPO])
def test_the_clip_stops_a_gradient_only_where_it_would_push_further_out(objective: Objective) -> None:
    tokens = inputs(num=0)
    gradient = gradient_of(lambda t: objective(t, PLAIN)[0], tokens)
    stopped = {corner for corner, slope in zip(CORNERS, gradient.tolist(), strict=True) if slope == 0}
    assert stopped == {(0.5, 1.5), (-0.25, -1.5), (-0.5, -1.5)}
    assert all(
        math.copysign(1, slope) == -math.copysign(1, gap)  # a positive advantage raises the log-prob
        for (shift, gap), slope in zip(CORNERS, gradient.tolist(), strict=True)
        if (shift, gap) not in stopped
    )
    assert objective(tokens, PLAIN)[1]["clipped_tokens"].item() == len(stopped)
    silent = replace(tokens, weight_N=torch.zeros_like(tokens.weight_N))
    assert objective(silent, PLAIN)[1]["clipped_tokens"].item() == 0


def test_nothing_is_clipped_while_the_ratio_is_one() -> None:
    assert K1(inputs(ratio_is_one=True), PLAIN)[1]["clipped_tokens"].item() == 0


@pytest.mark.parametrize("setting", [PLAIN, ANCHORED])
def test_a_divergence_is_weighed_scaled_and_summed(setting: ObjectiveSettings) -> None:
    tokens, objective = inputs(), OBJECTIVES["forward_kl"]
    assert tokens.divergence_N is not None
    tokens.divergence_N.requires_grad_()
    loss, metrics = objective(tokens, setting)
    share = [w * s for w, s in zip(tokens.weight_N.tolist(), tokens.scale_N.tolist(), strict=True)]
    policy = sum(s * d for s, d in zip(share, tokens.divergence_N.tolist(), strict=True))
    masked = replace(tokens, weight_N=torch.zeros_like(tokens.weight_N))
    anchor, to_logprob = by_hand("k1", masked, setting.beta_kl)
    assert loss.item() == pytest.approx(policy + anchor, abs=1e-12)
    assert metrics["policy_loss"].item() == pytest.approx(policy, abs=1e-12)
    found = torch.autograd.grad(loss, (tokens.divergence_N, tokens.logprobs_N), allow_unused=True)
    assert found[0].tolist() == pytest.approx(share, abs=1e-15)
    assert setting is PLAIN or found[1].tolist() == pytest.approx(to_logprob, abs=1e-12)
    assert (found[1] is None) == (setting is PLAIN)


def test_every_objective_says_what_it_needs() -> None:
    assert {name for name, objective in OBJECTIVES.items() if objective.needs_advantage} == {"grpo"}
    compares = {name: objective.contributions for name, objective in OBJECTIVES.items() if objective.contributions}
    assert compares == {"forward_kl": forward_kl, "reverse_kl": reverse_kl, "jsd": jsd}


def test_metrics_add_up_to_the_loss() -> None:
    tokens = inputs()
    loss, metrics = K1(tokens, ANCHORED)
    assert metrics.keys() == {"policy_loss", "anchor_kl", "clipped_tokens"}
    assert not any(value.requires_grad for value in metrics.values())
    assert loss.item() == pytest.approx((metrics["policy_loss"] + 0.05 * metrics["anchor_kl"]).item(), abs=1e-12)
    assert metrics["policy_loss"].item() == pytest.approx(by_hand("k1", tokens, 0.0)[0], abs=1e-12)
    assert K1(tokens, PLAIN)[1].keys() == {"policy_loss", "clipped_tokens"}


def test_the_gradient_depends_on_the_teacher_and_the_literal_forms_does_not() -> None:
    """The trap of arXiv 2605.23493: sum m (log pi - log pi_T) differentiates to m, whoever the teacher is."""
    tokens = inputs(ratio_is_one=True)
    other = replace(tokens, teacher_context_logprobs_N=tokens.teacher_context_logprobs_N - 0.7)

    def literal(t: TokenInputs) -> Tensor:
        return (t.scale_N * t.weight_N * (t.logprobs_N - t.teacher_context_logprobs_N)).sum()

    assert torch.equal(gradient_of(literal, tokens), gradient_of(literal, other))
    ours, theirs = (gradient_of(lambda t: K1(t, PLAIN)[0], t) for t in (tokens, other))
    assert (theirs - ours).tolist() == pytest.approx((0.7 * tokens.scale_N * tokens.weight_N).tolist(), abs=1e-12)
    assert not torch.allclose(ours, gradient_of(literal, tokens))


def test_the_advantage_is_detached() -> None:
    """With old = new, undetached, the ratio is constant: whatever gradient is left came through the advantage."""
    tokens = inputs()
    teacher = tokens.teacher_context_logprobs_N.clone().requires_grad_()
    leaky = replace(tokens, old_logprobs_N=tokens.logprobs_N, teacher_context_logprobs_N=teacher)
    loss, _ = K1(leaky, PLAIN)
    to_student, to_teacher = torch.autograd.grad(loss, (tokens.logprobs_N, teacher), allow_unused=True)
    assert loss.item() != 0
    assert to_student.abs().max().item() < 1e-15
    assert to_teacher is None


def test_a_mask_of_zeros_gives_no_loss_and_no_gradient() -> None:
    tokens = replace(inputs(), weight_N=torch.zeros_like(inputs().weight_N))
    assert K1(tokens, PLAIN)[0].item() == 0
    assert not gradient_of(lambda t: K1(t, PLAIN)[0], tokens).any()


def test_the_anchor_reaches_every_token_whatever_the_mask() -> None:
    kept, masked = inputs(), replace(inputs(), weight_N=torch.zeros_like(inputs().weight_N))
    on_masked = gradient_of(lambda t: K1(t, ANCHORED)[0], masked)
    assert on_masked.ne(0).all()
    policy = gradient_of(lambda t: K1(t, PLAIN)[0], kept)
    both = gradient_of(lambda t: K1(t, ANCHORED)[0], kept)
    assert both.tolist() == pytest.approx((policy + on_masked).tolist(), abs=1e-15)


@pytest.mark.parametrize("share", [1.0, 0.5], ids=["a step of one token", "of two"])
@pytest.mark.parametrize("far", [math.inf, 3.0])
def test_the_anchor_is_of_the_tokens_that_it_holds(far: float, share: float) -> None:
    """The first token alone is held; the reference may be infinitely far from the second."""
    held, other = inputs(num=0), [0.0] * (len(CORNERS) - 1)
    tokens = replace(
        held,
        weight_N=torch.zeros_like(held.weight_N),
        base_logprobs_N=held.logprobs_N.detach() + torch.tensor([0.7, far, *other[1:]]),
        anchor_scale_N=torch.tensor([share, *other], dtype=torch.float64),
    )
    loss, metrics = K1(tokens, ANCHORED)
    assert metrics["anchor_kl"].item() == pytest.approx(share * (math.exp(0.7) - 0.7 - 1), rel=1e-6)
    assert loss.item() == pytest.approx(0.05 * metrics["anchor_kl"].item(), rel=1e-12)
    slopes = gradient_of(lambda t: K1(t, ANCHORED)[0], tokens).tolist()
    assert slopes == pytest.approx([0.05 * share * (1 - math.exp(0.7)), *other], rel=1e-6)


def test_a_weight_of_zero_silences_only_its_own_token() -> None:
    tokens = inputs(ratio_is_one=True)
    gradient = gradient_of(lambda t: K1(t, PLAIN)[0], tokens)
    assert torch.equal(gradient == 0, tokens.weight_N == 0)
    assert 0 < (gradient == 0).sum() < len(gradient)


# k3


def exact_k3(d: float) -> float:
    with localcontext() as context:
        context.prec = 60
        return float(Decimal(d).exp() - Decimal(d) - 1)


@settings(max_examples=200)
@given(st.floats(-30, 30))
def test_k3_is_exact(d: float) -> None:
    found = k3(torch.tensor([d], dtype=torch.float64)).item()
    # expm1(d) and d round at the scale of d before they cancel.
    assert found == pytest.approx(exact_k3(d), rel=1e-14, abs=4 * math.ulp(d) + 1e-50)


@settings(max_examples=200)
@given(st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=40))
def test_k3_is_never_negative_beyond_a_rounding(d: list[float]) -> None:
    found = k3(torch.tensor(d, dtype=torch.float32))
    rounding = np.spacing(np.abs(np.array(d, np.float32)))
    assert (found.numpy() >= -rounding).all()
    assert (found.numpy()[np.abs(d) > 1e-2] > 0).all()


def test_k3_of_a_small_difference_keeps_its_digits_in_float32() -> None:
    """exp(d) - d - 1 with a plain exp is off by its own size here."""
    assert k3(torch.tensor([1e-3])).item() == pytest.approx(5.0017e-7, rel=1e-3)
    assert k3(torch.tensor([0.0])).item() == 0.0


# Denominators


def row(num: int, weights: list[float]) -> TrainRow:
    floats = np.zeros(num, np.float32)
    ids = np.arange(num, dtype=np.int32)
    return TrainRow(
        "r",
        False,
        np.arange(2, dtype=np.int32),
        np.arange(2, dtype=np.int32),
        ids,
        floats,
        floats,
        floats,
        np.array(weights, np.float32),
    )


ROWS = [row(4, [1, 0, 1.2, 0]), row(1, [0]), row(2, [0.8, 1])]  # 7 tokens, 4 of them kept


@pytest.mark.parametrize(
    ("denominator", "expected"),
    [
        ("response", [1 / 7] * 7),
        ("kept", [1 / 4] * 7),
        ("sequence_mean", [1 / 12] * 4 + [1 / 3] + [1 / 6] * 2),
        ("sum", [1.0] * 7),
    ],
)
def test_every_denominator(denominator: str, expected: list[float]) -> None:
    batch = pack(ROWS, count(ROWS), denominator)
    assert batch.scale_N.tolist() == pytest.approx(expected)
    assert batch.anchor_scale_N.tolist() == pytest.approx([1 / 7] * 7)  # N_resp, whatever the policy's denominator


def test_every_denominator_is_tested() -> None:
    assert DENOMINATORS.keys() == {"response", "kept", "sequence_mean", "sum"}


@pytest.mark.parametrize("name", sorted(DENOMINATORS))
def test_no_denominator_divides_by_zero(name: str) -> None:
    assert DENOMINATORS[name](BatchCounts(tokens=0, kept=0, rows=0), 0) == 1.0


def test_counts_are_of_tokens_kept_tokens_and_rows() -> None:
    assert count(ROWS) == BatchCounts(tokens=7, kept=4, rows=3)


# What can be told

RANGE = (
    "more than 0, at most 10: at 0 nothing of the context is learned, and above, "
    "one token of 9 nats outweighs a response"
)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("clip_low", 0.0, "between 0 and 1"),
        ("clip_low", 1.0, "between 0 and 1"),
        ("clip_high", 0.0, "more than 0, finite"),
        ("clip_high", math.inf, "more than 0, finite"),
        ("jsd_beta", 0.0, "between 0 and 1"),
        ("jsd_beta", 1.0, "between 0 and 1"),
        ("divergence_top_k", -1, "0 (all) or more"),
        ("divergence_clip", -0.1, "0 (none) or more"),
        ("divergence_clip", math.nan, "0 (none) or more"),
        ("lr_schedule", "step", "one of ['constant', 'cosine', 'linear']"),
        ("lr_end", 1.0, "0 to below 1, a share of learner.lr"),
        ("lr_end", -0.1, "0 to below 1, a share of learner.lr"),
        ("evidence_scale", 0.0, RANGE),
        ("evidence_scale", -1.0, RANGE),
        ("evidence_scale", 10.5, RANGE),
        ("evidence_scale", math.nan, RANGE),
        ("evidence_bound", -0.5, "0 (none) or more nats, finite"),
        ("evidence_bound", math.inf, "0 (none) or more nats, finite"),
        ("evidence_bound", 0.5, "0.0 with learner.evidence_scale = 1.0, which multiplies nothing"),
    ],
)
def test_a_value_out_of_range_is_refused(key: str, value: float, expected: str) -> None:
    with pytest.raises(ValueError) as error:
        LearnerConfig(**{key: value})  # type: ignore[arg-type]
    assert str(error.value) == f"learner.{key}: found {value!r}, expected {expected}"


def test_the_clips_of_rlsd_are_accepted() -> None:
    assert (LearnerConfig(clip_low=0.2, clip_high=0.28).clip_high, LearnerConfig().clip_low) == (0.28, 0.2)


@pytest.mark.parametrize("objective", sorted(set(OBJECTIVES) - {"k1"}))
def test_a_scale_is_refused_where_no_sampled_token_has_evidence(objective: str) -> None:
    with pytest.raises(ValueError, match=f"learner.evidence_scale: found 2.0, expected 1.0 with .* = '{objective}'"):
        LearnerConfig(objective=objective, evidence_scale=2.0)
    assert LearnerConfig(objective="k1", evidence_scale=2.0).evidence_scale == 2.0
