"""The exponential moving average of the student's weights, for a teacher that follows it slowly."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

FILE = "ema.safetensors"


class Ema:
    """rate * average + (1 - rate) * weights, float32 on the CPU, from the initial weights on.

    `named` is `ZeroEngine.full_tensors`, in which every rank takes part; only where `keep` is set (rank 0) is anything
    remembered, saved, loaded or iterated.
    """

    def __init__(self, rate: float, named: Iterable[tuple[str, Tensor]], keep: bool = True) -> None:
        assert 0 <= rate < 1
        self._rate, self._keep = rate, keep
        # copy: what `full_tensors` yields is gone or changed at the next step
        self._average = {name: tensor.to("cpu", torch.float32, copy=True) for name, tensor in named if keep}

    def update(self, named: Iterable[tuple[str, Tensor]]) -> None:
        """One step towards the weights."""
        for name, tensor in named:
            if self._keep:
                self._average[name].lerp_(tensor.to("cpu", torch.float32), 1 - self._rate)

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """(name, average), which the next `update` changes in place."""
        yield from self._average.items()

    def save(self, folder: Path) -> None:
        """The average as a file of a checkpoint's folder, which is made where it is missing."""
        if self._keep:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(self._average, folder / FILE)

    def load(self, folder: Path) -> None:
        """The average of that checkpoint; ValueError when it has none, or one of another model."""
        if not self._keep:
            return
        if not (folder / FILE).is_file():
            raise ValueError(f"{folder}: found no {FILE}, expected the checkpoint of a run with an averaged teacher")
        loaded = load_file(folder / FILE)
        shapes, expected = ({name: tuple(t.shape) for name, t in d.items()} for d in (loaded, self._average))
        if shapes != expected:
            odd = sorted(set(shapes.items()) ^ set(expected.items()))[0][0]
            raise ValueError(f"{folder / FILE}: {odd}: found {shapes.get(odd)}, expected {expected.get(odd)}")
        self._average = loaded
