"""Weights that are kept beside those that are trained, of plain parameters; tests/engine/test_zero.py has ZeRO's."""

from pathlib import Path

import pytest
import torch
from torch import nn

from learner.kept import KeptWeights

SHAPES = ((3, 5), (7,), (2, 2, 2))


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in SHAPES]


def walk(trained: list[nn.Parameter], seed: int) -> list[torch.Tensor]:
    """Moves the parameters somewhere, and says where to in float64."""
    random = torch.Generator().manual_seed(seed)
    for parameter in trained:
        parameter.data.copy_(torch.randn(parameter.shape, generator=random))
    return [parameter.detach().double() for parameter in trained]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num", [1, 2, 7])
def test_a_mean_is_that_of_float64_rounded_once(num: int, dtype: torch.dtype) -> None:
    trained = parameters(dtype)
    kept, seen = KeptWeights(trained, rank=0), []
    for seed in range(num):
        seen.append(walk(trained, seed))
        kept.add()
    walk(trained, 99)
    kept.put(num)
    for place, parameter in enumerate(trained):
        expected = torch.stack([weights[place] for weights in seen]).mean(0)
        apart = (parameter.detach().double() - expected).abs().max()
        assert parameter.dtype == dtype and apart <= (1e-6 if dtype == torch.float32 else 2**-8)


def test_what_is_taken_replaces_what_was_kept_and_does_not_follow_the_weights() -> None:
    trained = parameters()
    kept = KeptWeights(trained, rank=0)
    walk(trained, 0)
    kept.add()
    expected = walk(trained, 1)
    kept.take()
    walk(trained, 2)
    kept.put(1)
    assert all(torch.equal(p.detach().double(), e) for p, e in zip(trained, expected, strict=True))


def test_half_a_mean_goes_on_after_a_checkpoint(tmp_path: Path) -> None:
    whole, halves = parameters(), parameters()
    one, other = KeptWeights(whole, rank=1), KeptWeights(halves, rank=1)
    for seed in range(4):
        walk(whole, seed)
        walk(halves, seed)
        one.add()
        other.add()
        if seed == 1:
            other.save(tmp_path / "step-000002")
            other = KeptWeights(halves, rank=1)
            other.load(tmp_path / "step-000002")
    one.put(4)
    other.put(4)
    assert all(torch.equal(a, b) for a, b in zip(whole, halves, strict=True))


def test_a_checkpoint_without_any_keeps_nothing_and_another_models_is_refused(tmp_path: Path) -> None:
    trained = parameters()
    kept = KeptWeights(trained, rank=0)
    kept.save(tmp_path)
    assert list(tmp_path.iterdir()) == []
    kept.add()
    kept.save(tmp_path)
    kept.load(tmp_path / "none")
    with pytest.raises(RuntimeError, match=r"^kept weights: found the mean of 0, expected of 1$"):
        kept.put(1)
    with pytest.raises(ValueError, match=r"kept-rank-0\.safetensors: found 30 numbers, expected 15 of the tr"):
        KeptWeights(trained[:1], rank=0).load(tmp_path)
