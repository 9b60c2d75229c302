"""Divergences against probabilities written out in float64: of logits alone, and of a whole student and teacher.

The reference knows neither log-softmax nor chunks: it divides exponentials, and differentiates by finite differences
or by autograd through full logits.
"""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from learner.divergence import divergence, forward_kl, jsd, reverse_kl
from learner.head import Distribution, LogprobHead

KINDS = {"forward_kl": forward_kl, "reverse_kl": reverse_kl, "jsd": jsd}
SETTINGS = [(0, 0.0), (0, 0.05), (5, 0.0), (5, 0.05), (1, 0.0)]  # (top_k, clip)
BETA = 0.3
CPU = torch.device("cpu")


# The reference


def terms(kind: str, teacher: Any, student: Any) -> Any:
    """What each outcome contributes, from probabilities: numpy arrays or tensors."""
    log = torch.log if isinstance(student, Tensor) else np.log
    mixture = BETA * teacher + (1 - BETA) * student
    return {
        "forward_kl": teacher * log(teacher / student),
        "reverse_kl": student * log(student / teacher),
        "jsd": BETA * teacher * log(teacher / mixture) + (1 - BETA) * student * log(student / mixture),
    }[kind]


def by_hand(kind: str, teacher_logits: np.ndarray, student_logits: np.ndarray, top_k: int, clip: float) -> np.ndarray:
    """[C] float64, a position at a time."""
    found = []
    for t, s in zip(teacher_logits, student_logits, strict=True):
        teacher, student = (np.exp(logits) / np.exp(logits).sum() for logits in (t, s))
        if top_k:
            top = sorted(range(len(t)), key=lambda v: -t[v])[:top_k]
            teacher, student = (np.append(p[top], 1 - p[top].sum()) for p in (teacher, student))
        found.append(sum(min(term, clip or math.inf) for term in terms(kind, teacher, student)))
    return np.array(found)


def logits_pair(num: int = 6, vocab: int = 11) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return 2 * rng.normal(size=(num, vocab)), 2 * rng.normal(size=(num, vocab))


def of(kind: str, top_k: int, clip: float) -> Any:
    return divergence(KINDS[kind], top_k=top_k, clip=clip, jsd_beta=BETA)


# Of logits


@pytest.mark.parametrize(("top_k", "clip"), SETTINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_slopes_are_those_of_the_definition(kind: str, top_k: int, clip: float) -> None:
    teacher, student = logits_pair()
    leaf = torch.tensor(student, dtype=torch.float32, requires_grad=True)
    found = of(kind, top_k, clip)(torch.tensor(teacher, dtype=torch.float32), leaf)
    expected = by_hand(kind, teacher, student, top_k, clip)
    assert found.tolist() == pytest.approx(expected.tolist(), abs=2e-6)
    assert (expected > 0.01).any()

    (slope,) = torch.autograd.grad(found.sum(), leaf)
    for place in np.ndindex(*student.shape):
        up, down = student.copy(), student.copy()
        up[place] += 1e-6
        down[place] -= 1e-6
        numeric = (by_hand(kind, teacher, up, top_k, clip) - by_hand(kind, teacher, down, top_k, clip)).sum() / 2e-6
        assert slope[place].item() == pytest.approx(numeric, abs=5e-6), place


@pytest.mark.parametrize("kind", KINDS)
def test_the_settings_matter(kind: str) -> None:
    """Top-k with its tail loses some of the divergence, and the clip more: nothing above agrees by chance."""
    teacher, student = logits_pair()
    whole, top, clipped = (by_hand(kind, teacher, student, *setting) for setting in ((0, 0.0), (5, 0.0), (0, 0.05)))
    assert (whole - top > 1e-4).any() and (whole - top > -1e-12).all()
    assert (whole - clipped > 1e-2).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_divergence_from_itself_is_zero_with_no_slope(kind: str) -> None:
    logits = torch.tensor(logits_pair()[0], requires_grad=True)
    for top_k in (0, 3, 11):
        found = of(kind, top_k, 0.0)(logits.detach(), logits)
        (slope,) = torch.autograd.grad(found.sum(), logits)
        assert found.abs().max() < 1e-15 and slope.abs().max() < 1e-15


@pytest.mark.parametrize("kind", KINDS)
def test_top_k_of_the_whole_vocabulary_has_no_tail(kind: str) -> None:
    teacher, student = (torch.tensor(logits) for logits in logits_pair())
    assert torch.equal(of(kind, 11, 0.0)(teacher, student), of(kind, 0, 0.0)(teacher, student))


@pytest.mark.parametrize("kind", KINDS)
def test_a_tail_of_almost_no_mass_keeps_its_digits(kind: str) -> None:
    """In float32, 1 - the teacher's top mass would be 0 here, and its log infinite."""
    teacher, student = np.zeros((1, 4)), np.zeros((1, 4))
    teacher[0, 0], student[0, 0] = 30.0, 2.0
    leaf = torch.tensor(student).float().requires_grad_()
    found = of(kind, 1, 0.0)(torch.tensor(teacher).float(), leaf)
    tails = 3 * np.exp(-30.0), 3 * np.exp(-2.0)
    t, s = (np.array([1 / (1 + tail), tail / (1 + tail)]) for tail in tails)
    assert found.item() == pytest.approx(terms(kind, t, s).sum(), rel=1e-6)
    assert torch.isfinite(torch.autograd.grad(found.sum(), leaf)[0]).all()


def test_jsd_ends_in_the_two_kls() -> None:
    """As GKD says: JSD / b goes to KL(T || S) as b goes to 0, and JSD / (1 - b) to KL(S || T) as b goes to 1."""
    teacher, student = (torch.tensor(logits) for logits in logits_pair())
    for beta, share, kind in ((1e-7, 1e-7, "forward_kl"), (1 - 1e-7, 1e-7, "reverse_kl")):
        near = divergence(jsd, top_k=0, clip=0.0, jsd_beta=beta)(teacher, student) / share
        assert near.tolist() == pytest.approx(of(kind, 0, 0.0)(teacher, student).tolist(), rel=1e-4)


# Of a student and a teacher


def test_bfloat16_heads_compare_float32_logits() -> None:
    random = torch.Generator().manual_seed(0)
    weight, teacher_weight = (torch.randn(500, 64, generator=random).bfloat16() for _ in range(2))
    hidden, teacher_hidden = (torch.randn(20, 64, generator=random).bfloat16() / 2 for _ in range(2))
    targets = torch.randint(500, (20,), generator=random)
    head = LogprobHead(torch.nn.Parameter(weight), 7, of("reverse_kl", 0, 0.0))
    hidden.requires_grad_()
    _, found = head(hidden, targets, Distribution(teacher_hidden, teacher_weight))

    exact_hidden, exact_weight = (t.detach().double().requires_grad_() for t in (hidden, weight))
    logits = exact_hidden @ exact_weight.T, teacher_hidden.double() @ teacher_weight.double().T
    student, teacher = (logit.exp() / logit.exp().sum(1, keepdim=True) for logit in logits)
    expected = terms("reverse_kl", teacher, student).sum(1)
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    found.sum().backward()
    expected.sum().backward()
    for mine, exact in ((hidden, exact_hidden), (head.weight, exact_weight)):
        assert mine.grad.dtype == torch.bfloat16
        assert (mine.grad.double() - exact.grad).norm() < 0.01 * exact.grad.norm()


# Frozen models
