"""Seconds of the learner's step by part, and what share of a GPU's peak they reach."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from cluster.sizing.shape import ModelShape, shape_of
from cluster.sizing.speed import DEVICES, learned_flops
from cluster.sizing.use import CardUse, card_of
from learner import parts
from learner.memory import forget_peak, peak_bytes
from learner.parts import PartClock
from learner.report import PARTS, Metric, StepReport, Work, over_ranks
from tests.process.test_train import ROWS, stepped
from tests.unit.test_student import make_row


def test_marks_split_the_time_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 10.5, 12.5, 13.0, 13.25, 20.0, 21.0])
    monkeypatch.setattr(parts.time, "perf_counter", lambda: next(times))
    clock = PartClock(on_gpu=False)
    clock.mark("forward")  # outside a step: no time is read
    clock.start()
    for part in ("pack", "forward", "backward", "forward"):
        clock.mark(part)
    assert clock.take() == {"pack": 0.5, "forward": 2.25, "backward": 0.5}
    assert clock.take() == {}
    clock.start()
    clock.mark("pack")
    assert clock.take() == {"pack": 1.0}  # nothing of the step before


def test_a_step_says_its_parts_and_what_it_ran(tiny_model: Path) -> None:
    """Two prompts, one of them shared by two rows, in packs of up to 16 tokens."""
    shared = make_row(3, 2, seed=1)
    rows = [
        shared,
        replace(make_row(3, 4, seed=2), rollout_id="b", prompt_ids=shared.prompt_ids),
        make_row(1, 5, seed=3),
    ]
    report, _ = stepped(tiny_model, rows, updates_per_batch=2)
    assert report.metrics["pack_s"].value > 0 and report.metrics["pack_s"].reduction == "mean"
    assert {name for name in report.metrics if name.endswith("_s")} <= {f"{part}_s" for part in PARTS}
    # A row's tokens without its last; the shared prompt of 3 once. Token n of a row attends to n tokens.
    attended = sum(range(1, 4)) + 4 + (4 + 5 + 6) + sum(range(1, 6))
    assert report.work == Work(tokens=2 * (3 + 1 + 3 + 5), targets=2 * 11, attended=2 * attended)


def test_a_frozen_models_pass_is_a_part_of_its_own(tiny_model: Path) -> None:
    alone, _ = stepped(tiny_model, ROWS, beta_kl=0.05)
    anchored, _ = stepped(tiny_model, ROWS, base=tiny_model, beta_kl=0.05)
    taught, _ = stepped(tiny_model, ROWS, tiny_model, objective="forward_kl")
    assert "frozen_s" not in alone.metrics
    assert anchored.metrics["frozen_s"].value > 0 and taught.metrics["frozen_s"].value > 0


SHAPE = ModelShape(parameters=1100, active=1000, layers=2, hidden=10, queries=8, values=4, inner=30, vocabulary=20)


def test_flops_are_those_of_the_formula() -> None:
    """2 a parameter and token, the head at targets only; 4 a number of a query and pair; a backward pass is two."""
    forward = 2 * (800 * 7 + 200 * 3) + 4 * 2 * 8 * 11
    assert learned_flops(SHAPE, Work(7, 3, 11), is_adapter=False) == 3 * forward
    assert learned_flops(SHAPE, Work(7, 3, 11), is_adapter=True) == 2 * forward


def test_flops_agree_with_torchs_own_count_of_a_whole_step(tiny_model: Path) -> None:
    """torch counts matrix products; attention's masked half is among them, which model FLOPs leave out."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from tests.unit.test_student import plain_model

    model, shape, length = plain_model(tiny_model).float(), shape_of(str(tiny_model)), 12
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.arange(length)[None], use_cache=False).logits.sum().backward()
    work = Work(length, length, length * (length + 1) // 2)
    whole = learned_flops(shape, replace(work, attended=length * length), is_adapter=False)
    assert counter.get_total_flops() == pytest.approx(whole, rel=0.03)
    assert learned_flops(shape, work, is_adapter=False) < whole


def test_utilisation_is_of_the_peak_and_a_mean_over_ranks() -> None:
    metrics = {"forward_s": Metric(0.5, "mean"), "backward_s": Metric(1.5, "mean"), "lr": Metric(9.0, "first")}
    report = StepReport(0.0, metrics, 0.0, 7, 0, (), work=Work(7, 3, 11))
    use = CardUse(replace(DEVICES["H100"], flops=1e6), SHAPE, is_adapter=False)
    told = use.add(report)
    assert told.metrics["mfu"].value == pytest.approx(learned_flops(SHAPE, report.work, False) / 2.0 / 1e6)
    slower = replace(told, metrics=told.metrics | {"mfu": Metric(0.0, "mean")})
    assert over_ranks([told, slower]).metrics["mfu"] == told.metrics["mfu"].value / 2
    nothing_ran = replace(report, metrics={})
    assert use.add(nothing_ran) is nothing_ran


def test_a_cpu_has_no_peak(tiny_model: Path) -> None:
    assert np.isfinite(DEVICES["L4"].flops) and card_of(str(tiny_model), is_adapter=False) is None


def test_the_most_memory_of_each_rank_is_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    found, now = peak_bytes(), psutil.Process().memory_info().rss
    assert 0.9 * now < found["host"] < psutil.virtual_memory().total
    held = {"most": 9, "now": 4}
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.reset_peak_memory_stats", lambda: held.update(most=held["now"]))
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda: held["most"])
    assert peak_bytes()["device"] == 9
    forget_peak()
    assert peak_bytes()["device"] == 4
    reports = [StepReport(0.0, {}, 0.0, 0, 0, (), peak_bytes={"host": most, "device": 2 * most}) for most in (7, 8)]
    assert over_ranks(reports).peak_bytes == {"host": [7, 8], "device": [14, 16]}
