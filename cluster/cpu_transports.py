"""Two transports of weights between CPUs, for which vLLM has none: shared memory on one host, gloo between hosts.

Each has a learner's end, driven as vLLM's own trainer engines are, and an engine's end. What arrives is checked in
`cluster.weights`, whatever brought it.
"""

import os
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from torch import Tensor
from torch.distributed import ProcessGroupGloo, TCPStore
from vllm.distributed.weight_transfer.base import (
    ParamMeta,
    TrainerInitInfo,
    TrainerWeightTransferEngine,
    VLLMWeightSyncClient,
    WeightSource,
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)

from cluster.network import own_address

InitInfo = TypeVar("InitInfo", bound=WeightTransferInitInfo)
TrainerInfo = TypeVar("TrainerInfo", bound=TrainerInitInfo)
UpdateInfo = TypeVar("UpdateInfo", bound=WeightTransferUpdateInfo)
SENDER = 0  # the learner's rank among those that a transfer connects


class CpuTransferEngine(WeightTransferEngine[InitInfo, UpdateInfo], Generic[InitInfo, UpdateInfo]):
    """An engine's end on a CPU: vLLM's layerwise reload, and no accelerator to wait for."""

    def start_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        # The base class would call torch.accelerator.synchronize(), which a CPU does not have.
        self.receive_weights(self.parse_update_info(update_info))

    def finish_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        pass


class CpuTrainerEngine(TrainerWeightTransferEngine[TrainerInfo], Generic[TrainerInfo]):
    """The learner's end on a CPU: every rank iterates the source, which may be a collective, and rank 0 sends."""

    @classmethod
    def trainer_init(
        cls, init_info: TrainerInfo, *, client: VLLMWeightSyncClient, source: WeightSource | None = None
    ) -> Self:
        engine = cls(client=client, source=source, is_sender=init_info.is_sender)
        if engine.is_sender:
            engine._meet(init_info)
        return engine

    def send_weights(self) -> None:
        assert self.source is not None
        metas = self.source.metadata()
        if self.is_sender:
            self._send(self.source, metas)
        else:
            for _ in self.source:
                pass

    @abstractmethod
    def _meet(self, init_info: TrainerInfo) -> None:
        """Opens the way to the engines."""

    @abstractmethod
    def _send(self, source: WeightSource, metas: Sequence[ParamMeta]) -> None:
        """One whole update of every engine."""


def described(metas: Sequence[ParamMeta]) -> dict[str, Any]:
    """What the engines are told of the tensors that come."""
    return {
        "names": [meta.name for meta in metas],
        "dtypes": [str(meta.dtype).removeprefix("torch.") for meta in metas],
        "shapes": [list(meta.shape) for meta in metas],
    }


# Shared memory


@dataclass
class ShmTrainerInitInfo(TrainerInitInfo):
    backend: ClassVar[str] = "shm"


class ShmTrainerEngine(CpuTrainerEngine[ShmTrainerInitInfo]):
    """Writes the weights once into a memory file that every engine on this host maps."""

    init_info_cls = ShmTrainerInitInfo
    _path: str

    def _meet(self, init_info: ShmTrainerInitInfo) -> None:
        # Kept from push to push, since new pages take longer than what is written to them; it goes with this process,
        # however that ends.
        self._path = f"/proc/{os.getpid()}/fd/{os.memfd_create('edge-opd-weights')}"
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


class ShmTransferEngine(CpuTransferEngine[ShmInitInfo, ShmUpdateInfo]):
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


# gloo


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
        self.client.start_weight_update()
        beside = ThreadPoolExecutor(1)
        try:
            received = beside.submit(self.client.update_weights, described(metas))
            for meta, (name, tensor) in zip(metas, source, strict=True):
                assert (name, tensor.dtype) == (meta.name, meta.dtype), f"{name} {tensor.dtype}: expected {meta}"
                broadcast(self._group, tensor.contiguous())
            received.result()
        finally:
            beside.shutdown(wait=False)  # after a failure the engines may wait for what will not come
        self.client.finish_weight_update()


class GlooTransferEngine(CpuTransferEngine[GlooInitInfo, GlooUpdateInfo]):
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
