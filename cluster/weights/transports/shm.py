"""Weights through shared memory, between processes of one host."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from vllm.distributed.weight_transfer.base import (
    ParamMeta,
    TrainerInitInfo,
    WeightSource,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

from cluster.weights.transports import Meeting
from cluster.weights.transports.cpu import CpuTrainerEngine, CpuTransferEngine, described


@dataclass
class ShmTrainerInitInfo(TrainerInitInfo):
    backend: ClassVar[str] = "shm"


class ShmTrainerEngine(CpuTrainerEngine[ShmTrainerInitInfo]):
    """Writes the weights once into a memory file that every engine on this host maps."""

    init_info_cls = ShmTrainerInitInfo
    _path: str

    def _meet(self, init_info: ShmTrainerInitInfo) -> None:
        # Kept from push to push, since new pages take longer than what is written to them; it goes with this object,
        # and with this process, however that ends.
        self._file = open(os.memfd_create("edge-opd-weights"), "r+b")  # noqa: SIM115
        self._path = f"/proc/{os.getpid()}/fd/{self._file.fileno()}"
        self.client.init_weight_transfer_engine({})

    def _send(self, source: WeightSource, metas: Sequence[ParamMeta]) -> None:
        sizes = [torch.Size(meta.shape).numel() * meta.dtype.itemsize for meta in metas]
        offsets = _aligned_offsets(sizes)
        os.truncate(self._path, offsets[-1])
        buffer = torch.from_file(self._path, shared=True, size=offsets[-1], dtype=torch.uint8)
        places = {meta.name: (offset, size) for meta, offset, size in zip(metas, offsets, sizes, strict=False)}
        for name, tensor in source:
            offset, size = places[name]
            buffer[offset : offset + size].copy_(tensor.contiguous().view(-1).view(torch.uint8))
        self.client.start_weight_update()
        self.client.update_weights(described(metas) | {"path": self._path, "offsets": offsets})
        self.client.finish_weight_update()


def _aligned_offsets(sizes: list[int], alignment: int = 64) -> list[int]:
    """Where each block starts, and the total as the last element."""
    offsets = [0]
    for size in sizes:
        offsets.append(offsets[-1] + -(-size // alignment) * alignment)
    return offsets


@dataclass
class ShmInitInfo(WeightTransferInitInfo):
    pass


@dataclass
class ShmUpdateInfo(WeightTransferUpdateInfo):
    path: str
    names: list[str]
    dtypes: list[str]
    shapes: list[list[int]]
    offsets: list[int]


class Receiver(CpuTransferEngine[ShmInitInfo, ShmUpdateInfo]):
    """Maps the learner's shared-memory file and loads from it without a copy in between."""

    init_info_cls = ShmInitInfo
    update_info_cls = ShmUpdateInfo

    def init_transfer_engine(self, init_info: ShmInitInfo) -> None:
        pass

    def receive_weights(self, update_info: ShmUpdateInfo) -> None:
        total = update_info.offsets[-1]
        buffer = torch.from_file(update_info.path, shared=False, size=total, dtype=torch.uint8)
        weights = []
        for name, dtype_name, shape, offset in zip(
            update_info.names, update_info.dtypes, update_info.shapes, update_info.offsets, strict=False
        ):
            dtype = getattr(torch, dtype_name)
            size = torch.Size(shape).numel() * dtype.itemsize
            weights.append((name, buffer[offset : offset + size].view(dtype).view(shape)))
        self.model.load_weights(weights)


def trainer(at: Meeting) -> ShmTrainerInitInfo:
    """The learner's end, as vLLM's factory makes it from this."""
    return ShmTrainerInitInfo(rank=at.rank)


WeightTransferTrainerFactory.register_engine("shm", ShmTrainerEngine)
