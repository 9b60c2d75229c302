"""`learner.importance_clip` from rows to gradient, against plain transformers, a row at a time in full float32."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from learner.config import LearnerConfig
from learner.train import Trainer
from tests import fakes
from tests.process.test_anchor_on import BETA, rows_of
from tests.reference import logprobs_of, plain_model

CAP = 1.3
ENDS = [(3, 4, [0, 3]), (2, 5, [0, 2, 4]), (4, 1, [0]), (3, 3, [0, 2])]  # the first and the last token are kept
SETTINGS: dict[str, Any] = {"dtype": "float32", "beta_kl": BETA, "micro_batch_tokens": 12, "lr": 1e-9}


def test_plain_tokens_are_weighed_from_the_first_to_the_last(tiny_model: Path) -> None:
    """The engine's log-probs differ by 0.5 up at a row's first token, so that the weight is exp(-0.5), and by as much
    down at its last, where it is truncated; a guided row and one without a sampler have the weight 1."""
    model, rows = plain_model(tiny_model), []
    for index, row in enumerate(rows_of(ENDS)):
        own = logprobs_of(model, row.prompt_ids, row.response_ids).detach().float().numpy()
        sampler = own + np.linspace(0.5, -0.5, len(own), dtype=np.float32) if len(own) > 1 else own - 0.5
        rows.append(
            replace(row, guided=index == 1, sampler_logprobs=None if index == 3 else sampler.astype(np.float32))
        )
    total, loss, weights = sum(len(row.response_ids) for row in rows), torch.zeros((), dtype=torch.float64), []
    for index, row in enumerate(rows):
        logprobs = logprobs_of(model, row.prompt_ids, row.response_ids)
        kept, teacher, base = (
            torch.from_numpy(stream).double()
            for stream in (row.weight, row.teacher_context_logprobs, row.teacher_logprobs)
        )
        c = torch.ones_like(kept)
        if index in (0, 2):
            c = (logprobs.detach() - torch.from_numpy(row.sampler_logprobs).double()).exp()  # type: ignore[arg-type]
            weights += [(float(w), float(w) > CAP) for w, m in zip(c, kept, strict=True) if m]
            c = c.clamp(max=CAP)
        loss = loss - (c * kept * (teacher - logprobs.detach()) * logprobs).sum() / total
        d = base - logprobs
        loss = loss + BETA / total * (d.exp() - d - 1).sum()
    loss.backward()
    assert [round(w, 3) for w, _ in weights] == [0.607, 1.649, 1.649]

    config = LearnerConfig(importance_clip=CAP, head_chunk_tokens=3, **SETTINGS)
    learner = fakes.PlainLearner(tiny_model, config)
    report = Trainer(learner, config).step(rows)  # type: ignore[arg-type]
    found = dict(learner.student.causal_lm.named_parameters())
    for name, parameter in model.named_parameters():
        assert (found[name].grad - parameter.grad).abs().max() <= 2e-4 * parameter.grad.abs().max(), name
    told = {key: metric.value for key, metric in report.metrics.items() if key.startswith("importance")}
    expected = {"importance_mean": (0.6065 + 2 * CAP) / 3, "importance_clip_fraction": 2 / 3}
    assert told == pytest.approx(expected, rel=1e-3)


def test_nothing_is_weighed_by_default(tiny_model: Path) -> None:
    rows, losses = rows_of(ENDS), []
    for far in (0.0, 2.0):
        config = LearnerConfig(head_chunk_tokens=3, **SETTINGS)
        moved = [replace(row, sampler_logprobs=row.sampler_logprobs + np.float32(far)) for row in rows]
        report = Trainer(fakes.PlainLearner(tiny_model, config), config).step(moved)  # type: ignore[arg-type]
        losses.append(report.loss)
        assert not [key for key in report.metrics if key.startswith("importance")]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("told", "line"),
    [
        ({"importance_clip": 0.5}, r"learner.importance_clip: found 0.5, expected 0 \(no correction\), or 1 or more"),
        (
            {"importance_clip": 2.0, "objective": "jsd"},
            "expected 0.0 with learner.objective = 'jsd', which is no policy",
        ),
    ],
)
def test_a_clip_that_means_nothing_is_refused(told: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        LearnerConfig(**told)
