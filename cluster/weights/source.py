"""The learner's weights, as a transport reads them."""

import math
import re
from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor

from cluster.weights.digest import WeightsDigest
from cluster.weights.transports import Meta
from learner.ema import Ema
from learner.engine import ZeroEngine
from learner.parts import PartClock

LAYER = re.compile(r"(?:[^.]+\.)*?\d+\.")  # the beginning of a name, up to its first number


class TrainerSource:
    """The ZeRO engine's parameters as a transport wants them, or their average; digests what it yields, and counts its
    bytes. Iterating the parameters is a collective (ZeRO-3); the average is rank 0's.

    clock: of the push under way. What is done with a tensor before the next is asked for is the transport's.
    """

    def __init__(self, engine: ZeroEngine, average: Ema | None = None) -> None:
        self._engine, self._average = engine, average
        self.digest, self.clock, self.num_bytes = WeightsDigest(), PartClock(on_gpu=False), 0

    @property
    def on_gpu(self) -> bool:
        return bool(self._engine.device.type == "cuda")

    def metadata(self) -> list[Meta]:
        kept = torch.float32 if self._average is not None else None
        return [Meta(name, kept or dtype, shape) for name, dtype, shape in self._engine.parameter_shapes()]

    def largest_bytes(self) -> int:
        """Of its tensors."""
        return max(meta.dtype.itemsize * math.prod(meta.shape) for meta in self.metadata())

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        self.digest, self.num_bytes = WeightsDigest(), 0
        for name, tensor in self._tensors():
            self.clock.mark("gather")
            self.digest.add(name, tensor)
            self.num_bytes += tensor.nbytes
            self.clock.mark("digest")
            yield name, tensor
            self.clock.mark("send")
        self.clock.mark("gather")

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        if self._average is None:
            return self._engine.full_tensors(export_groups(self._engine))
        return ((name, tensor.to(self._engine.device)) for name, tensor in self._average)


def export_groups(engine: ZeroEngine) -> list[list[str]]:
    """Parameter names, one group per decoder layer: the unit in which ZeRO-3 gathers."""
    return by_layer([name for name, _, _ in engine.parameter_shapes()])


def by_layer(names: Sequence[str]) -> list[list[str]]:
    """The names in their order, in groups of one layer each, such as model.layers.3, and of what is between layers."""
    layer = {name: found[0] if (found := LAYER.match(name)) else "" for name in names}
    return [list(group) for _, group in groupby(names, layer.__getitem__)]
