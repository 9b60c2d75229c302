"""Divergences of a student and a teacher, frozen models, and DeepSpeed's own divergence beside ours."""

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
from learner.config import LearnerConfig, needed_models
from learner.engine import divergence_of
from learner.frozen import FrozenModel
from learner.load import load_causal_lm
from learner.model import Student
from tests import fakes
from tests.unit.test_divergence import BETA, KINDS, SETTINGS, logits_pair, of, terms
from tests.unit.test_student import ROWS, VOCAB, VocabularyRows, packed, plain_model, row_logprobs

CPU = torch.device("cpu")


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
