"""Weights over gloo, between hosts."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributed import ProcessGroupGloo, TCPStore
from vllm.distributed.weight_transfer.base import (
    ParamMeta,
    TrainerInitInfo,
    WeightSource,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

from cluster.fleet.network import own_address
from cluster.weights.transports import Meeting
from cluster.weights.transports.cpu import SENDER, CpuTrainerEngine, CpuTransferEngine, described


@dataclass
class GlooTrainerInitInfo(TrainerInitInfo):
    """world_size: the sender and every engine worker. timeout_s: of the rendezvous and of each tensor."""

    backend: ClassVar[str] = "gloo"

    master_address: str
    master_port: int
    world_size: int
    timeout_s: float


@dataclass
class GlooInitInfo(WeightTransferInitInfo):
    """rank_offset: rank of the engine's first worker."""

    master_address: str
    master_port: int
    rank_offset: int
    world_size: int
    timeout_s: float


@dataclass
class GlooUpdateInfo(WeightTransferUpdateInfo):
    names: list[str]
    dtypes: list[str]
    shapes: list[list[int]]


def open_group(address: str, port: int, rank: int, size: int, timeout_s: float) -> ProcessGroupGloo:
    """A process group beside torch's default one. It speaks from the interface that leads to `address`: a host's name
    may stand for its loopback."""
    timeout = timedelta(seconds=timeout_s)
    store = TCPStore(address, port, size, is_master=rank == SENDER, timeout=timeout, wait_for_workers=False)
    options = ProcessGroupGloo._Options()
    options._timeout = timeout
    options._devices = [ProcessGroupGloo.create_device(hostname=own_address(address, port))]
    return ProcessGroupGloo(store, rank, size, options)


def broadcast(group: ProcessGroupGloo, tensor: Tensor) -> None:
    """The sender's tensor to everyone, as bytes: gloo does not know every dtype."""
    group.broadcast(tensor.view(-1).view(torch.uint8), root=SENDER).wait()


class GlooTrainerEngine(CpuTrainerEngine[GlooTrainerInitInfo]):
    """Broadcasts the weights tensor by tensor, so that neither side holds more than one beside the model."""

    init_info_cls = GlooTrainerInitInfo
    _group: ProcessGroupGloo

    def _meet(self, init_info: GlooTrainerInitInfo) -> None:
        where = (init_info.master_address, init_info.master_port)
        theirs = GlooInitInfo(*where, SENDER + 1, init_info.world_size, init_info.timeout_s)
        with ThreadPoolExecutor(1) as beside:  # all meet in the rendezvous
            joined = beside.submit(self.client.init_weight_transfer_engine, asdict(theirs))
            self._group = open_group(*where, SENDER, init_info.world_size, init_info.timeout_s)
            joined.result()

    def _send(self, source: WeightSource, metas: Sequence[ParamMeta]) -> None:
        tensors = iter(source)
        with ThreadPoolExecutor(1) as beside:
            try:
                self.client.start_weight_update()
                received = beside.submit(self.client.update_weights, described(metas))
                for meta, (name, tensor) in zip(metas, tensors, strict=True):
                    assert (name, tensor.dtype) == (meta.name, meta.dtype), f"{name} {tensor.dtype}: expected {meta}"
                    broadcast(self._group, tensor.contiguous())
                received.result()
            except RuntimeError:
                for _ in tensors:  # which the other ranks gather with this one
                    pass
                raise
        self.client.finish_weight_update()


class Receiver(CpuTransferEngine[GlooInitInfo, GlooUpdateInfo]):
    """Loads each tensor as it arrives."""

    init_info_cls = GlooInitInfo
    update_info_cls = GlooUpdateInfo

    def init_transfer_engine(self, init_info: GlooInitInfo) -> None:
        rank = init_info.rank_offset + self.parallel_config.rank
        where = (init_info.master_address, init_info.master_port)
        self._group = open_group(*where, rank, init_info.world_size, init_info.timeout_s)

    def receive_weights(self, update_info: GlooUpdateInfo) -> None:
        for name, tensor in self._arriving(update_info):
            self.model.load_weights([(name, tensor)])

    def _arriving(self, update_info: GlooUpdateInfo) -> Iterator[tuple[str, Tensor]]:
        for name, dtype, shape in zip(update_info.names, update_info.dtypes, update_info.shapes, strict=True):
            tensor = torch.empty(shape, dtype=getattr(torch, dtype))
            broadcast(self._group, tensor)
            yield name, tensor


def trainer(at: Meeting) -> GlooTrainerInitInfo:
    """The learner's end, as vLLM's factory makes it from this."""
    return GlooTrainerInitInfo(at.address, at.port, at.num_workers + 1, at.timeout_s, rank=at.rank)


WeightTransferTrainerFactory.register_engine("gloo", GlooTrainerEngine)
