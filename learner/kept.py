"""Weights that a run keeps beside those it trains, to end with: the mean of its last steps, or those of a probe."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from learner.deepspeed_quirks import own_part, put_own_part


class KeptWeights:
    """A running mean of the trained parameters, float32 on the CPU; of one set of weights it is a copy.

    Every rank keeps what it holds: 4 bytes for each trained parameter, under ZeRO-3 for each of its shard. No rank
    asks another for anything.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], rank: int) -> None:
        self._parameters, self._file = parameters, f"kept-rank-{rank}.safetensors"
        self._means: list[Tensor] = []
        self.count = 0  # of the weights that it is the mean of

    def add(self) -> None:
        """Takes the weights as they are now into the mean."""
        self.count += 1
        parts = [own_part(parameter).detach() for parameter in self._parameters]
        if self.count == 1:
            self._means = [part.to("cpu", torch.float32, copy=True) for part in parts]
            return
        for mean, part in zip(self._means, parts, strict=True):
            mean.lerp_(part.to("cpu", torch.float32), 1 / self.count)

    def take(self) -> None:
        """Keeps the weights as they are now, and nothing of those before."""
        self.count = 0
        self.add()

    def put(self, count: int) -> None:
        """Makes the mean the weights that are trained, rounded to their type; the optimizer's moments stay.

        Raises:
            RuntimeError: it is the mean of another number of weights.
        """
        if self.count != count:
            raise RuntimeError(f"kept weights: found the mean of {self.count}, expected of {count}")
        for parameter, mean in zip(self._parameters, self._means, strict=True):
            put_own_part(parameter, mean)

    def save(self, folder: Path) -> None:
        """This rank's file of a checkpoint's folder, which is made where it is missing; nothing where none is kept."""
        if self.count:
            folder.mkdir(parents=True, exist_ok=True)
            named = {str(place): mean for place, mean in enumerate(self._means)}
            save_file(named, folder / self._file, metadata={"count": str(self.count)})

    def load(self, folder: Path) -> None:
        """What that checkpoint has kept. ValueError where it is of another model."""
        self._means, self.count = [], 0
        path = folder / self._file
        if not path.is_file():
            return
        with safe_open(path, "pt") as file:
            found = [file.get_tensor(str(place)) for place in range(len(file.keys()))]
            count = int(file.metadata()["count"])
        sizes, expected = ([part.numel() for part in parts] for parts in (found, map(own_part, self._parameters)))
        if sizes != expected:
            raise ValueError(f"{path}: found {sum(sizes)} numbers, expected {sum(expected)} of the trained parameters")
        self._means, self.count = found, count
