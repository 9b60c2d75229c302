"""The training step in plain torch: what it reports, which models it asks, which rows it refuses."""

import json
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cluster.run.figures import Pushed
from cluster.run.record import line_of_step, step_record
from evidence.records import ShardInfo, TrainRow
from learner.batches import PackedTokens
from learner.config import LearnerConfig
from learner.frozen import FrozenModel
from learner.parts import PartClock
from learner.plan import plan
from learner.report import LearnedStep, Metric, StepReport, over_ranks
from learner.train import Trainer, _row_stats
from rollout.stages import StepTime
from rollout.worker import StepRollouts
from tests import fakes
from tests.unit.test_student import make_row, plain_model, row_logprobs

CPU = torch.device("cpu")
SETTINGS = {"beta_kl": 0.0, "dtype": "float32", "lr": 0.05, "micro_batch_tokens": 16, "head_chunk_tokens": 4}
LOW, HIGH = 0.2, 0.28


def some_rows() -> list[TrainRow]:
    """Kept and masked tokens, a row without any, advantages of both signs and 0."""
    rng = np.random.default_rng(4)
    sizes, advantages = [(5, 7), (1, 4), (9, 1), (3, 12), (6, 2)], [1.2, -0.7, 0.0, -1.1, 0.4]
    made = []
    for seed, (size, advantage) in enumerate(zip(sizes, advantages, strict=True)):
        weight = rng.choice([0.0, 0.9, 1.2], size[1]) * (seed != 4)
        made.append(make_row(*size, seed=seed, weight=weight, advantage=advantage))
    return made


ROWS = some_rows()


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fakes.tiny_model(tmp_path_factory.mktemp("other"), seed=9)


def stepped(
    path: Path, rows: Sequence[TrainRow], teacher: Path | None = None, base: Path | None = None, **learner: Any
) -> tuple[StepReport, fakes.PlainLearner]:
    config = LearnerConfig(**SETTINGS | learner)
    engine = fakes.PlainLearner(path, config)
    models = (FrozenModel(str(path), config, CPU) if path else None for path in (teacher, base))
    return Trainer(engine, config, *models).step(rows), engine  # type: ignore[arg-type]


def untimed(report: StepReport) -> dict[str, Metric]:
    """The metrics that are no seconds."""
    return {name: metric for name, metric in report.metrics.items() if not name.endswith("_s")}


# What a device is asked


class Reads(TorchDispatchMode):
    """Counts what a GPU would be waited for: a tensor's number, or how many of them hold."""

    READ = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, operator: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        if operator in self.READ:
            self.found.append("".join(traceback.format_stack(limit=12)))
        return operator(*arguments, **(named or {}))


@pytest.mark.parametrize("told", [{}, {"objective": "grpo", "updates_per_batch": 2}, {"importance_clip": 2.0}])
def test_no_number_is_read_from_the_device_before_the_optimizers_step(tiny_model: Path, told: dict[str, Any]) -> None:
    reads = Reads()

    class Watched(fakes.PlainLearner):
        def step(self, batches: Sequence[Any], loss_of: Any, skips: bool = False) -> float:
            def watched(batch: Any) -> Tensor:
                with reads:
                    loss: Tensor = loss_of(batch)
                return loss

            return super().step(batches, watched, skips)

    config = LearnerConfig(**SETTINGS | {"beta_kl": 0.05} | told)  # type: ignore[arg-type]
    report = Trainer(Watched(tiny_model, config), config).step(ROWS)  # type: ignore[arg-type]
    assert report.metrics["policy_loss"].value != 0 and not reads.found, reads.found[0]


@pytest.mark.parametrize("told", [{}, {"updates_per_batch": 2}, {"objective": "forward_kl"}], ids=str)
def test_no_number_is_read_from_the_device_in_a_whole_step(tiny_model: Path, other: Path, told: dict[str, Any]) -> None:
    """What a step reports is copied once, when the last update is taken. Several micro-batches, and the base."""
    reads, config = Reads(), LearnerConfig(**SETTINGS | {"beta_kl": 0.05} | told)  # type: ignore[arg-type]
    engine = fakes.PlainLearner(tiny_model, config)
    teacher = FrozenModel(str(other), config, CPU) if "objective" in told else None
    trainer = Trainer(engine, config, teacher, FrozenModel(str(other), config, CPU))  # type: ignore[arg-type]
    with reads:
        report = trainer.step(ROWS)
    assert len(engine.seen) > 2 and report.work.attended > report.work.tokens > 0
    assert not reads.found, f"{len(reads.found)} times: {reads.found[0]}"


# Metrics


def shares(old: np.ndarray, new: np.ndarray, advantage: np.ndarray) -> tuple[int, int]:
    """(tokens whose ratio is beyond the clip in the direction that the advantage pushes, tokens with one)."""
    ratio = np.exp(new - old)
    clipped = ((advantage > 0) & (ratio > 1 + HIGH)) | ((advantage < 0) & (ratio < 1 - LOW))
    return int(clipped.sum()), int((advantage != 0).sum())


@pytest.mark.parametrize("objective", ["k1", "grpo"])
def test_the_clip_fraction_is_of_active_tokens_in_later_updates(tiny_model: Path, objective: str) -> None:
    rows = [row for row in ROWS if row.weight.any() and row.advantage]
    learner = {"objective": objective, "updates_per_batch": 3, "clip_low": LOW, "clip_high": HIGH}
    report, engine = stepped(tiny_model, rows, **learner)
    (packs,) = plan(rows, 1, 16)
    order = [row for part in packs for row in part]
    updates = np.split(torch.cat(engine.seen).double().numpy(), 3)
    weight = np.concatenate([row.weight for row in order])
    gap = np.concatenate([row.teacher_context_logprobs for row in order]) - updates[0]
    of_rollout = np.concatenate([np.full(len(row.response_ids), row.advantage) for row in order])
    advantage = weight * (gap if objective == "k1" else of_rollout)
    clipped, active = np.sum([shares(updates[0], later, advantage) for later in updates[1:]], axis=0)
    assert len(packs) > 1 and 0 < clipped < active
    assert report.metrics["clip_fraction"].value == pytest.approx(clipped / active)
    assert "clipped_tokens" not in report.metrics


@pytest.mark.parametrize(("objective", "updates"), [("k1", 1), ("grpo", 1), ("forward_kl", 2)])
def test_what_is_never_clipped_has_no_clip_fraction(
    tiny_model: Path, other: Path, objective: str, updates: int
) -> None:
    teacher = other if objective == "forward_kl" else None
    report, _ = stepped(tiny_model, ROWS, teacher, objective=objective, updates_per_batch=updates)
    assert untimed(report).keys() == {"policy_loss", "lr"}


def test_loss_and_policy_metrics_are_the_first_updates(tiny_model: Path) -> None:
    once, thrice = (stepped(tiny_model, ROWS, beta_kl=0.05, updates_per_batch=n)[0] for n in (1, 3))
    assert once.loss == pytest.approx(thrice.loss)
    assert thrice.metrics.keys() - once.metrics.keys() == {"clip_fraction"}
    for key, value in untimed(once).items():
        assert thrice.metrics[key].value == pytest.approx(value.value), key


def test_every_rank_says_the_rate_and_the_step_has_it_once(tiny_model: Path) -> None:
    config = LearnerConfig(**SETTINGS)  # type: ignore[arg-type]
    reports = []
    for rank in (0, 1):
        engine = fakes.PlainLearner(tiny_model, config)
        engine.rank, engine.num_ranks = rank, 2
        reports.append(Trainer(engine, config).step(ROWS))  # type: ignore[arg-type]
    assert [report.metrics["lr"] for report in reports] == [Metric(0.05, "first")] * 2
    assert over_ranks(reports).metrics["lr"] == 0.05


# Scaled evidence


@pytest.mark.parametrize(("scale", "bound"), [(1.0, 0.0), (2.5, 0.0), (2.5, 0.1)])
def test_a_rows_evidence_is_scaled_on_its_own_tokens(tiny_model: Path, scale: float, bound: float) -> None:
    """log pi_T(y|x) + lambda e - log pi_theta(y|x), by a float32 forward of each row alone, whatever shares a pack; and
    with what goes beyond the teacher bounded."""
    rows = [replace(row, evidence=row.teacher_context_logprobs - row.teacher_logprobs) for row in ROWS]
    report, _ = stepped(tiny_model, rows, evidence_scale=scale, evidence_bound=bound)
    model, total = plain_model(tiny_model), 0.0
    with torch.no_grad():
        for row in rows:
            plain, e = (torch.from_numpy(a).double() for a in (row.teacher_logprobs, row.evidence))
            beyond = e.clamp(-bound, bound) if bound else e
            gap = plain + e + (scale - 1) * beyond - row_logprobs(model, row)
            total += float(torch.from_numpy(row.weight).double() @ gap)
    assert report.loss == pytest.approx(-total / sum(len(row.response_ids) for row in rows), rel=1e-4)


# Frozen models


def anchor_by_hand(student: Path, base: Path, rows: Sequence[TrainRow]) -> float:
    """Mean k3 over all response tokens, float64."""
    models = [plain_model(path) for path in (base, student)]
    with torch.no_grad():
        base_logprobs, logprobs = (torch.cat([row_logprobs(model, row) for row in rows]) for model in models)
    d = base_logprobs - logprobs
    return float((d.exp() - d - 1).mean())


def test_the_base_is_the_anchors_reference_where_it_is_given(tiny_model: Path, other: Path) -> None:
    report, _ = stepped(tiny_model, ROWS, base=other, beta_kl=0.05)
    assert report.metrics["anchor_kl"].value == pytest.approx(anchor_by_hand(tiny_model, other, ROWS), rel=1e-4)
    of_shard, _ = stepped(tiny_model, ROWS, beta_kl=0.05)
    assert of_shard.metrics["anchor_kl"].value != pytest.approx(report.metrics["anchor_kl"].value, rel=0.1)
    assert of_shard.metrics["policy_loss"].value == pytest.approx(report.metrics["policy_loss"].value)


def test_the_base_stays_where_it_is_while_the_student_moves(tiny_model: Path) -> None:
    """Its own initial weights: the first step's anchor is 0, the second's is not."""
    config = LearnerConfig(**SETTINGS | {"beta_kl": 0.05})  # type: ignore[arg-type]
    engine, base = fakes.PlainLearner(tiny_model, config), FrozenModel(str(tiny_model), config, CPU)
    trainer = Trainer(engine, config, base=base)  # type: ignore[arg-type]
    first, second = (trainer.step(ROWS).metrics["anchor_kl"].value for _ in range(2))
    assert first == pytest.approx(0, abs=1e-8)
    assert second > 1e-4


def forward_kl_by_hand(student: Path, teacher: Path, rows: Sequence[TrainRow]) -> float:
    """Sum of weight * KL(T under (x, r) || S under x) over the number of response tokens, float64."""
    total = 0.0
    with torch.no_grad():
        for row in rows:
            tables = []
            for path, prompt in ((teacher, row.context_prompt_ids), (student, row.prompt_ids)):
                full = torch.from_numpy(np.concatenate([prompt, row.response_ids])).long()
                logits = plain_model(path)(full[None], use_cache=False).logits[0].double()[len(prompt) - 1 : -1]
                tables.append(logits.exp() / logits.exp().sum(1, keepdim=True))
            kl = (tables[0] * (tables[0] / tables[1]).log()).sum(1)
            total += float(torch.from_numpy(row.weight).double() @ kl)
    return total / sum(len(row.response_ids) for row in rows)


def test_a_divergence_is_of_the_teacher_under_the_context_and_the_student_without(
    tiny_model: Path, other: Path
) -> None:
    report, _ = stepped(tiny_model, ROWS, teacher=other, objective="forward_kl")
    assert report.loss == pytest.approx(forward_kl_by_hand(tiny_model, other, ROWS), rel=1e-4)
    no_context = [replace(row, context_prompt_ids=row.prompt_ids) for row in ROWS]
    plain, _ = stepped(tiny_model, no_context, teacher=other, objective="forward_kl")
    assert plain.loss != pytest.approx(report.loss, rel=1e-2)


def test_a_teacher_with_another_vocabulary_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    fakes.tiny_model(tmp_path, vocab=1000)
    with pytest.raises(ValueError) as error:
        stepped(tiny_model, ROWS, teacher=tmp_path, objective="jsd")
    assert "found a teacher with a vocabulary of 1000 tokens, expected the student's 2048" in str(error.value)


# Advantages


def test_grpo_takes_the_advantage_of_the_rollout(tiny_model: Path) -> None:
    """One update: the ratio is 1, so the loss is minus the mean of weight times advantage."""
    report, _ = stepped(tiny_model, ROWS, objective="grpo")
    total = sum(float(row.weight.sum(dtype=np.float64)) * (row.advantage or 0.0) for row in ROWS)
    assert report.loss == pytest.approx(-total / sum(len(row.response_ids) for row in ROWS), rel=1e-5)
    assert report.skipped_rows == 2  # one without a kept token, one whose advantage is 0


def test_a_group_without_a_contrast_is_not_run(tiny_model: Path) -> None:
    report, engine = stepped(tiny_model, [replace(row, advantage=0.0) for row in ROWS], objective="grpo")
    assert (report.row_tokens, report.skipped_rows, report.loss) == (0, len(ROWS), 0.0)
    assert not engine.seen


def test_grpo_refuses_a_row_without_an_advantage(tiny_model: Path) -> None:
    with pytest.raises(ValueError, match="rollout 1: advantage: found none, expected a number"):
        stepped(tiny_model, [ROWS[0], replace(ROWS[1], advantage=None)], objective="grpo")


def test_an_idle_rank_adds_nothing_even_where_the_anchor_overflows() -> None:
    engine = ImprobableEngine()
    report = Trainer(engine, LearnerConfig(beta_kl=0.05, num_ranks=2)).step(ROWS[:1])  # type: ignore[arg-type]
    assert (report.loss, report.row_tokens, report.stats) == (0.0, 0, ())
    assert engine.logit.grad.tolist() == [0.0]


class ImprobableEngine:
    """The second of two ranks, of a model that all but rules out every token."""

    rank, num_ranks, lr = 1, 2, 0.1

    def __init__(self) -> None:
        self.logit = torch.full((1,), -95.0, requires_grad=True)
        self.clock, self.device = PartClock(on_gpu=False), CPU

    def forward(self, tokens: PackedTokens, teacher: None = None) -> tuple[Tensor, None]:
        return self.logit.expand(len(tokens.targets_N)), None

    def step(self, micro_batches: Sequence[Any], loss_of: Any, skips: bool) -> float:
        for batch in micro_batches:
            loss_of(batch).backward()
        return 0.0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_no_figure_of_a_record(value: float) -> None:
    """JSON knows no such number, and a mean over it none that says anything."""
    learned = LearnedStep(value, {"policy": value, "lr": 0.1}, value, 8, 0, [], {}, nonfinite_updates=1)
    produced = StepRollouts(3, ShardInfo("a", 3, 8, 40, ""), 0, 0, 3, 3, {}, 0.0, None, nonfinite=2)
    record = step_record(3, produced, learned, StepTime(1.0, {}), Pushed("ab", 0.0))
    assert (record.loss, record.grad_norm, record.metrics) == (None, None, {"lr": 0.1})
    assert (record.nonfinite_rollouts, record.nonfinite_updates) == (2, 1)
    line = json.loads(json.dumps(line_of_step(record), allow_nan=False))
    assert (line["nonfinite_rollouts"], line["nonfinite_updates"]) == (2, 1)


def test_a_row_whose_log_probs_are_not_finite_counts_as_one_that_was_not_run() -> None:
    row = ROWS[0]
    broken = np.full(len(row.response_ids), np.nan, np.float32)
    assert _row_stats(row, broken) == _row_stats(row, None) != _row_stats(row, np.zeros_like(broken))
