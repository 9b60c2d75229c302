"""The learner's end of two transports of weights between CPUs, for which vLLM has none: shared memory on one host, gloo
between hosts. It is driven as vLLM's own trainer engines are, and needs none of vLLM.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from cluster.weights.transports import Meeting, Meta, Source

SENDER = 0  # the learner's rank among those that a transfer connects


class CpuSender(ABC):
    """Every rank iterates the source, which may be a collective, and rank 0 sends."""

    def __init__(self, at: Meeting, client: Any, source: Source) -> None:
        self.client, self.source, self.is_sender = client, source, at.rank == SENDER
        if self.is_sender:
            self._meet(at)

    def send_weights(self) -> None:
        metas = self.source.metadata()
        if self.is_sender:
            self._send(self.source, metas)
        else:
            for _ in self.source:
                pass

    @abstractmethod
    def _meet(self, at: Meeting) -> None:
        """Opens the way to the engines."""

    @abstractmethod
    def _send(self, source: Source, metas: Sequence[Meta]) -> None:
        """One whole update of every engine."""


def described(metas: Sequence[Meta]) -> dict[str, Any]:
    """What the engines are told of the tensors that come."""
    return {
        "names": [meta.name for meta in metas],
        "dtypes": [str(meta.dtype).removeprefix("torch.") for meta in metas],
        "shapes": [list(meta.shape) for meta in metas],
    }
