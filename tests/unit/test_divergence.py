"""Divergences against probabilities written out in float64: of logits alone, and of a whole student and teacher.

The reference knows neither log-softmax nor chunks: it divides exponentials, and differentiates by finite differences
or by autograd through full logits.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deepspeed.runtime.rollout import generalized_jsd_loss
from torch import Tensor

from evidence.records import Ids, TrainRow
from learner.config import LearnerConfig
from learner.divergence import divergence, forward_kl, jsd, reverse_kl
from learner.engine import divergence_of
from learner.frozen import FrozenModel, needed_models
from learner.head import Distribution, LogprobHead
from learner.load import load_causal_lm
from learner.model import Student
from tests import fakes
from tests.unit.test_student import ROWS, VOCAB, VocabularyRows, packed, plain_model, row_logprobs

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


@pytest.mark.parametrize("clip", [0.0, 0.05])
@pytest.mark.parametrize(("kind", "beta"), [("forward_kl", 0.0), ("reverse_kl", 1.0), ("jsd", BETA)])
def test_deepspeed_agrees(kind: str, beta: float, clip: float) -> None:
    """Over the whole vocabulary: its top-k renormalises where ours keeps a tail."""
    teacher, student = (torch.tensor(logits) for logits in logits_pair())
    ours, theirs = student.clone().requires_grad_(), student.clone().requires_grad_()
    found = of(kind, 0, clip)(teacher, ours).sum()
    mask = torch.ones(1, len(student))
    expected = generalized_jsd_loss(theirs[None], teacher[None], mask, beta=beta, pointwise_clip=clip or None).loss_sum
    assert found.item() == pytest.approx(expected.item(), abs=1e-12)
    slopes = torch.autograd.grad(found, ours)[0], torch.autograd.grad(expected, theirs)[0]
    assert torch.allclose(*slopes, rtol=0, atol=1e-12)


# Of a student and a teacher


@pytest.fixture(scope="module")
def teacher_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model with the student's vocabulary: other weights, narrower, untied."""
    return fakes.tiny_model(tmp_path_factory.mktemp("teacher"), seed=5, tied=False, hidden_size=32)


def learner(kind: str, top_k: int = 0, clip: float = 0.0, chunk: int = 3, dtype: str = "float32") -> LearnerConfig:
    return LearnerConfig(
        objective=kind,
        divergence_top_k=top_k,
        divergence_clip=clip,
        jsd_beta=BETA,
        head_chunk_tokens=chunk,
        dtype=dtype,
    )


def student_of(path: Path, config: LearnerConfig) -> Student:
    return Student(load_causal_lm(str(path), torch.float32), config.head_chunk_tokens, divergence_of(config, VOCAB))


def probabilities(model: Any, prompt: Ids, response: Ids) -> Tensor:
    """[T, V] float64 of one row alone: position i of the logits speaks of token i + 1."""
    full = torch.from_numpy(np.concatenate([prompt, response])).long()
    logits = model(full[None], use_cache=False).logits[0].double()[len(prompt) - 1 : -1]
    return logits.exp() / logits.exp().sum(1, keepdim=True)


def row_divergence(kind: str, teacher: Any, student: Any, row: TrainRow, top_k: int, clip: float) -> Tensor:
    """[T]: the teacher under (x, r), the student under x."""
    with torch.no_grad():
        t = probabilities(teacher, row.context_prompt_ids, row.response_ids)
    s = probabilities(student, row.prompt_ids, row.response_ids)
    if top_k:
        top = t.sort(dim=1, descending=True).indices[:, :top_k]
        t, s = (torch.cat([top_p := p.gather(1, top), 1 - top_p.sum(1, keepdim=True)], dim=1) for p in (t, s))
    each = terms(kind, t, s)
    return torch.where(each < (clip or math.inf), each, clip).sum(1)


@pytest.mark.parametrize(("top_k", "clip"), SETTINGS[:4])
@pytest.mark.parametrize("kind", KINDS)
def test_every_position_and_every_parameter_agree_with_full_logits(
    tiny_model: Path, teacher_path: Path, kind: str, top_k: int, clip: float
) -> None:
    student, teacher = plain_model(tiny_model), plain_model(teacher_path)
    expected = [row_divergence(kind, teacher, student, row, top_k, clip) for row in ROWS]
    lengths = [len(row.response_ids) for row in ROWS]
    factors = torch.rand(sum(lengths), generator=torch.Generator().manual_seed(1))
    on_logprobs = torch.randn(sum(lengths), generator=torch.Generator().manual_seed(2))
    logprobs = torch.cat([row_logprobs(student, row) for row in ROWS])
    (torch.cat(expected) @ factors.double() + logprobs @ on_logprobs.double()).backward()
    theirs = dict(student.named_parameters())
    for chunk in (1, 3, 1000):
        config = learner(kind, top_k, clip, chunk)
        mine = student_of(tiny_model, config)
        batch, frozen = packed(ROWS), FrozenModel(str(teacher_path), config, CPU)
        also, found = mine(*batch.tokens, teacher=frozen.distribution(batch.context_tokens))
        assert found.dtype == also.dtype == torch.float32
        assert also.tolist() == pytest.approx(logprobs.tolist(), abs=2e-5)
        for ours, exact in zip(torch.split(found, lengths), expected, strict=True):
            assert ours[0].item() == pytest.approx(exact[0].item(), abs=2e-5)
            assert ours[-1].item() == pytest.approx(exact[-1].item(), abs=2e-5)
            assert ours.tolist() == pytest.approx(exact.tolist(), abs=2e-5)
        (found @ factors + also @ on_logprobs).backward()
        for name, parameter in mine.causal_lm.named_parameters():
            exact_grad = theirs[name].grad
            assert exact_grad.abs().max() > 1e-4, name
            assert torch.allclose(parameter.grad, exact_grad, rtol=1e-4, atol=1e-4 * exact_grad.abs().max()), name


def test_the_reference_can_tell_the_prompts_and_the_models_apart(tiny_model: Path, teacher_path: Path) -> None:
    student, teacher, row = plain_model(tiny_model), plain_model(teacher_path), ROWS[0]
    with torch.no_grad():
        right = row_divergence("jsd", teacher, student, row, 0, 0.0)
        swapped = row_divergence("jsd", student, teacher, row, 0, 0.0)
        own_prompt = (
            terms("jsd", *(probabilities(m, row.prompt_ids, row.response_ids) for m in (teacher, student)))
        ).sum(1)
    assert (right - own_prompt).abs().min() > 1e-4
    assert (right - swapped).abs().max() > 1e-3
    assert (right[1:] - right[:-1]).abs().min() > 1e-4


@pytest.mark.parametrize("top_k", [0, 5])
@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_no_tensor_of_vocabulary_width_is_taller_than_the_chunk(
    tiny_model: Path, teacher_path: Path, chunk: int, top_k: int
) -> None:
    config, batch = learner("jsd", top_k, 0.05, chunk), packed(ROWS)
    student, frozen = student_of(tiny_model, config), FrozenModel(str(teacher_path), config, CPU)
    num = len(batch.tokens.targets_N)
    with VocabularyRows(torch.nn.ModuleList([student, frozen._trunk])) as seen:
        logprobs, found = student(*batch.tokens, teacher=frozen.distribution(batch.context_tokens))
        in_forward = len(seen.rows)
        (logprobs.sum() + found.sum()).backward()
    assert max(seen.rows) == chunk
    assert min(in_forward, len(seen.rows) - in_forward) >= 2 * -(-num // chunk)  # the teacher's and the student's


def test_more_tokens_than_the_vocabulary_has_are_refused() -> None:
    assert divergence_of(learner("jsd", top_k=VOCAB), VOCAB) is not None
    with pytest.raises(ValueError) as error:
        divergence_of(learner("jsd", top_k=VOCAB + 1), VOCAB)
    assert str(error.value) == "learner.divergence_top_k: found 2049, expected at most the vocabulary's 2048 tokens"


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


def test_a_frozen_models_logprobs_are_those_of_its_folder(teacher_path: Path) -> None:
    frozen, model = FrozenModel(str(teacher_path), learner("k1"), CPU), plain_model(teacher_path)
    found = frozen.logprobs(packed(ROWS).tokens)
    with torch.no_grad():
        expected = [row_logprobs(model, row) for row in ROWS]
    assert not found.requires_grad
    for ours, exact in zip(torch.split(found, [len(e) for e in expected]), expected, strict=True):
        assert ours[0].item() == pytest.approx(exact[0].item(), abs=2e-5)
        assert ours[-1].item() == pytest.approx(exact[-1].item(), abs=2e-5)
        assert ours.tolist() == pytest.approx(exact.tolist(), abs=2e-5)


def test_a_frozen_model_has_no_gradient(tiny_model: Path, teacher_path: Path) -> None:
    config, batch = learner("forward_kl"), packed(ROWS)
    student, frozen = student_of(tiny_model, config), FrozenModel(str(teacher_path), config, CPU)
    distribution = frozen.distribution(batch.context_tokens)
    student(*batch.tokens, teacher=distribution)[1].sum().backward()
    assert not distribution.hidden_NH.requires_grad
    assert not any(p.requires_grad or p.grad is not None for p in frozen._trunk.parameters())


@pytest.mark.parametrize(
    ("needs_distribution", "beta_kl", "teacher_is_base", "expected"),
    [
        (False, 0.05, True, (False, False)),  # log pi_T(y|x) of the shard is the anchor's reference
        (False, 0.05, False, (False, True)),
        (False, 0.0, False, (False, False)),
        (True, 0.05, True, (True, False)),
        (True, 0.05, False, (True, True)),
        (True, 0.0, False, (True, False)),
    ],
)
def test_which_frozen_models_are_needed(
    needs_distribution: bool, beta_kl: float, teacher_is_base: bool, expected: Sequence[bool]
) -> None:
    assert needed_models(needs_distribution, beta_kl, teacher_is_base) == expected
