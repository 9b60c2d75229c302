"""Weights over gloo, between hosts."""

import secrets
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from functools import cached_property, partial
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributed import ProcessGroupGloo
from vllm.distributed.weight_transfer.base import (
    ParamMeta,
    TrainerInitInfo,
    WeightSource,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

from cluster.fleet.network import open_door, own_address
from cluster.weights.delta import Held, Pushes, arriving
from cluster.weights.transports import Meeting
from cluster.weights.transports.cpu import SENDER, CpuTrainerEngine, CpuTransferEngine, described
from learner.rendezvous import new_secret, prove, store_at


@dataclass
class GlooTrainerInitInfo(TrainerInitInfo):
    """master_address: of this host, as the others see it. world_size: the sender and every engine worker. timeout_s: of
    the rendezvous and of each tensor. pushes: those of before, where only what changed since is to go."""

    backend: ClassVar[str] = "gloo"

    master_address: str
    world_size: int
    timeout_s: float
    pushes: Pushes | None = None


@dataclass
class GlooInitInfo(WeightTransferInitInfo):
    """rank_offset: rank of the engine's first worker. secret: that only members of the group have."""

    master_address: str
    master_port: int
    rank_offset: int
    world_size: int
    timeout_s: float
    secret: str = field(repr=False)


@dataclass
class GlooUpdateInfo(WeightTransferUpdateInfo):
    """mark: of a push of what changed (`cluster.weights.delta`); 0: each tensor comes as it is."""

    names: list[str]
    dtypes: list[str]
    shapes: list[list[int]]
    mark: int = 0


def open_group(
    address: str, port: int, rank: int, size: int, timeout_s: float, secret: str, door: socket.socket | None = None
) -> ProcessGroupGloo:
    """A process group beside torch's default one, each member of which has the secret. It speaks from the interface
    that leads to `address`: a host's name may stand for its loopback. door: the sender's, at that port.

    Raises:
        RuntimeError: somebody does not come, or does not have the secret.
    """
    store = store_at(address, port, timeout_s, door)
    options = ProcessGroupGloo._Options()
    options._timeout = timedelta(seconds=timeout_s)
    options._devices = [ProcessGroupGloo.create_device(hostname=own_address(address, port))]
    group = ProcessGroupGloo(store, rank, size, options)
    prove(secret, rank, lambda own: _gathered(group, own, size))
    return group


def _gathered(group: ProcessGroupGloo, own: Tensor, size: int) -> list[Tensor]:
    every = [torch.empty_like(own) for _ in range(size)]
    group.allgather([every], [own]).wait()
    return every


def broadcast(group: ProcessGroupGloo, tensor: Tensor) -> None:
    """The sender's tensor to everyone, as bytes: gloo does not know every dtype."""
    group.broadcast(tensor.view(-1).view(torch.uint8), root=SENDER).wait()


def held_by_each(group: ProcessGroupGloo, held: Held) -> list[int]:
    """The marks of what the sender and each worker hold, by rank; every member calls it."""
    return [int(mark) for mark in _gathered(group, torch.tensor([held.mark]), group.size())]


class GlooTrainerEngine(CpuTrainerEngine[GlooTrainerInitInfo]):
    """Broadcasts the weights tensor by tensor, so that neither side holds more than one beside the model; or what
    changed of them."""

    init_info_cls = GlooTrainerInitInfo
    _group: ProcessGroupGloo

    def _meet(self, init_info: GlooTrainerInitInfo) -> None:
        self._pushes = init_info.pushes
        door, secret = open_door(init_info.master_address), new_secret()
        where = init_info.master_address, int(door.getsockname()[1])
        size, seconds = init_info.world_size, init_info.timeout_s
        theirs = GlooInitInfo(*where, SENDER + 1, size, seconds, secret)
        with ThreadPoolExecutor(1) as beside:  # all meet in the rendezvous
            joined = beside.submit(self.client.init_weight_transfer_engine, asdict(theirs))
            self._group = open_group(*where, SENDER, size, seconds, secret, door)
            joined.result()

    def _send(self, source: WeightSource, metas: Sequence[ParamMeta]) -> None:
        tensors, pushes = iter(source), self._pushes
        mark = secrets.randbelow(1 << 62) + 1 if pushes else 0
        with ThreadPoolExecutor(1) as beside:
            try:
                self.client.start_weight_update()
                received = beside.submit(self.client.update_weights, described(metas) | {"mark": mark})
                for message in self._messages(metas, tensors):
                    broadcast(self._group, message)
                received.result()
            except RuntimeError:
                for _ in tensors:  # which the other ranks gather with this one
                    pass
                raise
        self.client.finish_weight_update()
        if pushes:
            pushes.held.mark = mark

    def _messages(self, metas: Sequence[ParamMeta], tensors: Iterator[tuple[str, Tensor]]) -> Iterator[Tensor]:
        if self._pushes:
            yield from self._pushes.messages(held_by_each(self._group, self._pushes.held), metas, tensors)
            assert next(tensors, None) is None, "more tensors than were described"
            return
        for meta, (name, tensor) in zip(metas, tensors, strict=True):
            assert (name, tensor.dtype) == (meta.name, meta.dtype), f"{name} {tensor.dtype}: expected {meta}"
            yield tensor.contiguous()


class Receiver(CpuTransferEngine[GlooInitInfo, GlooUpdateInfo]):
    """Loads each tensor as it arrives, or has become what it is to be."""

    init_info_cls = GlooInitInfo
    update_info_cls = GlooUpdateInfo

    @cached_property
    def _held(self) -> Held:
        """As long as the engine lives, however often the learner's end is opened anew."""
        return Held()

    def init_transfer_engine(self, init_info: GlooInitInfo) -> None:
        rank = init_info.rank_offset + self.parallel_config.rank
        where = (init_info.master_address, init_info.master_port)
        self._group = open_group(*where, rank, init_info.world_size, init_info.timeout_s, init_info.secret)

    def receive_weights(self, update_info: GlooUpdateInfo) -> None:
        for name, tensor in self._changed(update_info) if update_info.mark else self._arriving(update_info):
            self.model.load_weights([(name, tensor)])

    def _arriving(self, update_info: GlooUpdateInfo) -> Iterator[tuple[str, Tensor]]:
        for meta in _metas(update_info):
            tensor = torch.empty(meta.shape, dtype=meta.dtype)
            broadcast(self._group, tensor)
            yield meta.name, tensor

    def _changed(self, update_info: GlooUpdateInfo) -> Iterator[tuple[str, Tensor]]:
        held = self._held
        held_by_each(self._group, held)
        held.mark = 0  # should this push fail
        yield from arriving(held, _metas(update_info), partial(broadcast, self._group))
        held.mark = update_info.mark


def _metas(info: GlooUpdateInfo) -> list[ParamMeta]:
    described = zip(info.names, info.dtypes, info.shapes, strict=True)
    return [ParamMeta(name, getattr(torch, dtype), torch.Size(shape)) for name, dtype, shape in described]


def trainer(at: Meeting) -> GlooTrainerInitInfo:
    """The learner's end, as vLLM's factory makes it from this."""
    return GlooTrainerInitInfo(at.address, at.num_workers + 1, at.timeout_s, at.pushes, rank=at.rank)


WeightTransferTrainerFactory.register_engine("gloo", GlooTrainerEngine)
