"""The moving average of weights against the recursion in float64, its dtype, and its file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from learner.ema import FILE, Ema

RATE = 0.9


def weights(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {"a": torch.randn(3, 4, generator=random).to(dtype), "b": torch.randn(5, generator=random).to(dtype)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_recursion_from_the_initial_weights(dtype: torch.dtype) -> None:
    history = [weights(seed, dtype) for seed in range(6)]
    ema = Ema(RATE, history[0].items())
    for theta in history[1:]:
        ema.update(theta.items())
    found = dict(ema)
    assert found.keys() == history[0].keys()
    for name, average in found.items():
        expected = history[0][name].double().numpy()
        for theta in history[1:]:
            expected = RATE * expected + (1 - RATE) * theta[name].double().numpy()
        assert average.dtype == torch.float32
        assert np.abs(average.double().numpy() - expected).max() < 1e-6


def test_it_starts_as_a_copy_and_not_as_the_weights_themselves() -> None:
    theta = weights(0)
    ema = Ema(RATE, theta.items())
    assert all(torch.equal(average, theta[name]) for name, average in ema)
    first = {name: tensor.clone() for name, tensor in theta.items()}
    for tensor in theta.values():
        tensor.zero_()
    assert all(torch.equal(average, first[name]) for name, average in ema)


def test_small_steps_are_not_lost_in_bfloat16() -> None:
    """A bfloat16 average would stay at 1: its next value is 1.0078."""
    ema = Ema(0.999, {"a": torch.ones(1, dtype=torch.bfloat16)}.items())
    for _ in range(10):
        ema.update({"a": torch.full((1,), 2.0, dtype=torch.bfloat16)}.items())
    assert dict(ema)["a"].item() == pytest.approx(2 - 0.999**10, rel=1e-6)


def test_a_rate_of_0_follows_the_weights() -> None:
    ema = Ema(0.0, weights(0).items())
    ema.update(weights(1).items())
    assert all(torch.allclose(average, weights(1)[name]) for name, average in ema)


def test_other_ranks_take_part_and_keep_nothing(tmp_path: Path) -> None:
    asked: list[str] = []

    def full_tensors() -> list[tuple[str, Tensor]]:
        asked.append("gathered")
        return list(weights(0).items())

    ema = Ema(RATE, full_tensors(), keep=False)
    rest = iter(weights(1).items())
    ema.update(rest)
    assert next(rest, None) is None  # the whole collective was run through
    ema.save(tmp_path)
    ema.load(tmp_path)
    assert list(ema) == [] and list(tmp_path.iterdir()) == []


def test_a_saved_average_goes_on_where_it_was(tmp_path: Path) -> None:
    first, second = Ema(RATE, weights(0).items()), Ema(RATE, weights(7).items())
    first.update(weights(1).items())
    first.save(tmp_path / "step-000001")
    second.load(tmp_path / "step-000001")
    for ema in (first, second):
        ema.update(weights(2).items())
    assert all(torch.equal(average, dict(first)[name]) for name, average in second)


def test_a_checkpoint_without_an_average_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{tmp_path}: found no {FILE}, expected the checkpoint of a run"):
        Ema(RATE, weights(0).items()).load(tmp_path)


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"a": torch.zeros(3, 4), "b": torch.zeros(6)}, r"b: found \(6,\), expected \(5,\)"),
        ({"a": torch.zeros(3, 4)}, r"b: found None, expected \(5,\)"),
    ],
)
def test_the_average_of_another_model_is_refused(saved: dict[str, Tensor], message: str, tmp_path: Path) -> None:
    Ema(RATE, saved.items()).save(tmp_path)
    with pytest.raises(ValueError, match=message):
        Ema(RATE, weights(0).items()).load(tmp_path)
