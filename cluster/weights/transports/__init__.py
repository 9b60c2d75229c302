"""The ways that weights take. Each is a module of its name, with the learner's end, `sender`; the engines' are in
`receivers`. This file is light: recipes are checked by it. vLLM has ipc and nccl, between GPUs; shm and gloo, between
CPUs, are this project's, and a learner that sends by them does not load vLLM."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

TRANSPORTS = ("shm", "gloo", "ipc", "nccl")
BUFFER = 1 << 30  # bytes that tensors are packed into between GPUs: a plan of the memory counts them


@dataclass(frozen=True)
class Meeting:
    """Where the learner's ranks and the engines' workers find each other."""

    rank: int  # of the learner
    address: str  # of the learner's first rank
    num_workers: int
    timeout_s: float
    largest_bytes: int  # of the tensors that are sent
    pushes: Any = None  # a `cluster.weights.delta.Pushes` where only what changed is to go, which gloo alone can


@dataclass(frozen=True)
class Meta:
    """A tensor that is sent."""

    name: str
    dtype: "torch.dtype"
    shape: tuple[int, ...]


class Source(Protocol):
    """What is sent, as often as it is iterated: the tensors that `metadata` has, in its order, each with its name."""

    def metadata(self) -> Sequence[Meta]: ...

    def __iter__(self) -> "Iterator[tuple[str, torch.Tensor]]": ...


def transport(name: str) -> Any:
    """The module of the transport `name`: `sender(at, client, source)` meets the engines, and has `send_weights`."""
    return import_module(f"{__name__}.{name}")


def backend(name: str) -> str:
    """What vLLM's engines call their end of it (`cluster.weights.receiver`)."""
    return f"edge_{name}"
