"""`learner.anchor_on`: what is not kept leaves the forward, and the loss and its gradient do not notice.

The reference runs every row whole in plain transformers, one at a time, with full float32 logits.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from evidence.diagnostics import TokenStats
from evidence.records import TrainRow
from learner.config import LearnerConfig
from learner.train import Trainer
from tests import fakes
from tests.reference import logprobs_of, plain_model

BETA = 0.05
# (prompt, response, kept places): nothing kept, the first alone, the last too, one in the middle, one token
KINDS = [(3, 6, []), (4, 7, [0]), (2, 5, [1, 4]), (5, 8, [2, 3]), (4, 1, [0]), (3, 1, [])]


def rows_of(kinds: Sequence[tuple[int, int, list[int]]]) -> list[TrainRow]:
    rng, rows = np.random.default_rng(0), []
    for index, (num_prompt, num_response, kept) in enumerate(kinds):
        prompt, response = (rng.integers(3, 500, size).astype(np.int32) for size in (num_prompt, num_response))
        with_r, without, sampler = (-5 * rng.random(num_response, np.float32) for _ in range(3))
        weight = np.zeros(num_response, np.float32)
        weight[kept] = rng.uniform(0.8, 1.2, len(kept))
        streams = (with_r, without, with_r - without, weight)
        rows.append(TrainRow(str(index), False, prompt, prompt, response, *streams, 0.5 * index - 1, sampler))
    return rows


def reference(path: Path, rows: Sequence[TrainRow], config: LearnerConfig) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradient, each row run whole."""
    model = plain_model(path)
    total, loss = sum(len(row.response_ids) for row in rows), torch.zeros((), dtype=torch.float64)
    for row in rows:
        logprobs = logprobs_of(model, row.prompt_ids, row.response_ids)
        streams = (row.weight, row.teacher_context_logprobs, row.teacher_logprobs)
        weight, teacher, base = (torch.from_numpy(stream).double() for stream in streams)
        share = 1 / (len(rows) * len(weight)) if config.denominator == "sequence_mean" else 1 / total
        advantage = (
            torch.full_like(weight, row.advantage or 0.0) if config.objective == "grpo" else teacher - logprobs.detach()
        )
        loss = loss - share * (weight * advantage * (logprobs - logprobs.detach()).exp()).sum()
        held = torch.ones_like(weight) if config.anchor_on == "all" else (weight != 0).double()
        d = base - logprobs
        loss = loss + config.beta_kl / total * (held * (d.exp() - d - 1)).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss), {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("denominator", ["response", "sequence_mean"])
@pytest.mark.parametrize("objective", ["k1", "grpo"])
@pytest.mark.parametrize("beta_kl", [0.0, BETA])
def test_an_anchor_on_kept_tokens_gives_the_full_forwards_gradient(
    tiny_model: Path, objective: str, denominator: str, beta_kl: float
) -> None:
    rows = rows_of(KINDS)
    told = {"objective": objective, "denominator": denominator, "beta_kl": beta_kl, "head_chunk_tokens": 3}
    config = LearnerConfig(anchor_on="kept", dtype="float32", micro_batch_tokens=20, lr=1e-9, **told)  # type: ignore[arg-type]
    learner = fakes.PlainLearner(tiny_model, config)
    report = Trainer(learner, config).step(rows)  # type: ignore[arg-type]
    loss, gradient = reference(tiny_model, rows, config)
    assert report.loss == pytest.approx(loss, rel=1e-4, abs=1e-6)
    found = {name: parameter.grad for name, parameter in learner.student.causal_lm.named_parameters()}
    assert found.keys() == gradient.keys()
    for name, expected in gradient.items():
        assert (found[name] - expected).abs().max() <= 2e-4 * expected.abs().max(), name


def test_what_is_left_out_is_counted_and_not_run(tiny_model: Path) -> None:
    rows = rows_of(KINDS)
    config = LearnerConfig(anchor_on="kept", beta_kl=BETA, dtype="float32", head_chunk_tokens=3, lr=1e-9)
    learner = fakes.PlainLearner(tiny_model, config)
    report = Trainer(learner, config).step(rows)  # type: ignore[arg-type]
    ran = {"1": 1, "2": 5, "3": 4, "4": 1}  # response tokens up to the last kept one
    assert sum(len(seen) for seen in learner.seen) == sum(ran.values())
    assert report.row_tokens == sum(len(row.prompt_ids) + ran[row.rollout_id] - 1 for row in rows if row.weight.any())
    assert report.logprobs.keys() == {"2", "4"}  # of the rows that ran whole
    stats = sum((part for _, part in report.stats), TokenStats())
    assert (stats.rows, stats.tokens, stats.active) == (6, 28, 6)
    assert stats.student_tokens == report.mismatch.tokens == sum(ran.values())
    assert report.skipped_rows == 2


def test_an_infinite_difference_outside_the_anchor_is_nothing(tiny_model: Path) -> None:
    (row,) = rows_of([(3, 4, [3])])
    row = replace(row, teacher_logprobs=np.array([500, -1, -1, -1], np.float32))
    config = LearnerConfig(anchor_on="kept", beta_kl=BETA, dtype="float32", head_chunk_tokens=3, lr=1e-9)
    learner = fakes.PlainLearner(tiny_model, config)
    report = Trainer(learner, config).step([row])  # type: ignore[arg-type]
    assert np.isfinite(report.loss)
    assert all(parameter.grad.isfinite().all() for parameter in learner.student.parameters())


def test_another_choice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"learner.anchor_on: found 'none', expected one of \('all', 'kept'\)"):
        LearnerConfig(anchor_on="none")
