"""The engines' end of each transport. What arrives is checked in `cluster.weights.receiver`, whatever brought it.

On a GPU they are vLLM's own, but for what is waited for; between CPUs, for which vLLM has none, this project's.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

from cluster.weights.delta import Held, arriving
from cluster.weights.transports import Meta
from cluster.weights.transports.gloo import broadcast, held_by_each, open_group

InitInfo = TypeVar("InitInfo", bound=WeightTransferInitInfo)
UpdateInfo = TypeVar("UpdateInfo", bound=WeightTransferUpdateInfo)


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


class ShmReceiver(CpuTransferEngine[ShmInitInfo, ShmUpdateInfo]):
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


class GlooReceiver(CpuTransferEngine[GlooInitInfo, GlooUpdateInfo]):
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


def _metas(info: GlooUpdateInfo) -> list[Meta]:
    told = zip(info.names, info.dtypes, info.shapes, strict=True)
    return [Meta(name, getattr(torch, dtype), tuple(shape)) for name, dtype, shape in told]


class NcclReceiver(NCCLWeightTransferEngine):
    """vLLM's."""

    def receive_weights(self, update_info: Any) -> None:
        torch.accelerator.synchronize()
        super().receive_weights(update_info)


RECEIVERS: dict[str, type[WeightTransferEngine[Any, Any]]] = {
    "shm": ShmReceiver,
    "gloo": GlooReceiver,
    "ipc": IPCWeightTransferEngine,
    "nccl": NcclReceiver,
}
