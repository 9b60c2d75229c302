"""Both ends of the weight hand-off, over vLLM's native weight-transfer interface.

    learner rank 0                                          every worker of every student engine
    TrainerSource --(name, tensor)--> trainer engine ====> transfer engine --> model.load_weights --> mend tied head
         \\_ WeightsDigest                                        \\_ WeightsDigest

nccl and ipc are vLLM's own engines on both sides; shm is this project's backend for CPUs, where vLLM has none.
A digest compares what was sent with what was received; it cannot see what an engine made of it (a stale packed copy
behind a tied lm_head), so after each push the canary of `cluster.pipeline` compares log-probs as well.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from vllm.distributed.weight_transfer.base import (
    ParamMeta,
    TrainerInitInfo,
    TrainerWeightTransferEngine,
    VLLMWeightSyncClient,
    WeightSource,
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
    layerwise_groups,
)
from vllm.distributed.weight_transfer.clients import RayVLLMWeightSyncClient
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory, WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo, IPCWeightTransferEngine
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLWeightTransferEngine

from learner.ema import Ema
from learner.engine import ZeroEngine

RECEIVER = "cluster.weights.WeightReceiver"
_CHUNK = 1 << 22  # elements summed at one time


class WeightsDigest:
    """Order-independent digest of a set of named tensors, computed where they live.

    Per tensor: name, dtype, shape, and two 64-bit sums of its bits, plain and weighted by position; SHA-256 of the
    sorted lines. It finds what is missing, stale, swapped or damaged; it is not a cryptographic proof.
    """

    def __init__(self) -> None:
        self._lines: dict[str, str] = {}

    def add(self, name: str, tensor: Tensor) -> None:
        bits = tensor.detach().contiguous().view(-1).view(_bits_dtype(tensor))
        plain = weighted = 0
        for start in range(0, len(bits), _CHUNK):
            part = bits[start : start + _CHUNK].to(torch.int64)
            place = torch.arange(start + 1, start + 1 + len(part), dtype=torch.int64, device=part.device) % 65521
            plain += int(part.sum())
            weighted += int((part * place).sum())
        self._lines[name] = f"{name} {tensor.dtype} {tuple(tensor.shape)} {plain} {weighted}"

    def hexdigest(self) -> str:
        if not self._lines:
            return ""
        return hashlib.sha256("\n".join(sorted(self._lines.values())).encode()).hexdigest()[:16]


def _bits_dtype(tensor: Tensor) -> torch.dtype:
    return {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]


# The learner's end


class TrainerSource(WeightSource):
    """The ZeRO engine's parameters as vLLM wants them, or their average; digests what it yields. Iterating the
    parameters is a collective (ZeRO-3); the average is rank 0's."""

    def __init__(self, engine: ZeroEngine, average: Ema | None = None) -> None:
        self._engine, self._average = engine, average
        self.digest = WeightsDigest()

    def metadata(self) -> list[ParamMeta]:
        kept = torch.float32 if self._average is not None else None
        return [ParamMeta(name, kept or dtype, shape) for name, dtype, shape in self._engine.parameter_shapes()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        self.digest = WeightsDigest()
        for name, tensor in self._tensors():
            self.digest.add(name, tensor)
            yield name, tensor

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        if self._average is None:
            return self._engine.full_tensors(self.groups())
        return ((name, tensor.to(self._engine.device)) for name, tensor in self._average)


class VersionedClient(RayVLLMWeightSyncClient):
    """Commits `version` on every engine when an update finishes; vLLM's trainer engines do not name one."""

    version = 0

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        super().finish_weight_update(weight_version or str(self.version))


@dataclass
class ShmTrainerInitInfo(TrainerInitInfo):
    backend: ClassVar[str] = "shm"


class ShmTrainerEngine(TrainerWeightTransferEngine[ShmTrainerInitInfo]):
    """Writes the weights once into a memory file that every engine on this host maps."""

    init_info_cls = ShmTrainerInitInfo

    @classmethod
    def trainer_init(
        cls, init_info: ShmTrainerInitInfo, *, client: VLLMWeightSyncClient, source: WeightSource | None = None
    ) -> Self:
        engine = cls(client=client, source=source, is_sender=init_info.is_sender)
        if engine.is_sender:
            client.init_weight_transfer_engine({})
        return engine

    def send_weights(self) -> None:
        assert self.source is not None
        if not self.is_sender:
            for _ in self.source:
                pass
            return
        metas = self.source.metadata()
        sizes = [torch.Size(meta.shape).numel() * meta.dtype.itemsize for meta in metas]
        offsets = _aligned_offsets(sizes)
        handle = os.memfd_create("edge-opd-weights")  # goes with this process, however it ends
        path = f"/proc/{os.getpid()}/fd/{handle}"
        try:
            os.truncate(handle, offsets[-1])
            buffer = torch.from_file(path, shared=True, size=offsets[-1], dtype=torch.uint8)
            places = {meta.name: (offset, size) for meta, offset, size in zip(metas, offsets, sizes, strict=False)}
            for name, tensor in self.source:
                offset, size = places[name]
                buffer[offset : offset + size].copy_(tensor.contiguous().view(-1).view(torch.uint8))
            self.client.start_weight_update()
            self.client.update_weights(
                {
                    "path": path,
                    "names": [meta.name for meta in metas],
                    "dtypes": [str(meta.dtype).removeprefix("torch.") for meta in metas],
                    "shapes": [list(meta.shape) for meta in metas],
                    "offsets": offsets,
                }
            )
            self.client.finish_weight_update()
        finally:
            os.close(handle)


def _aligned_offsets(sizes: list[int], alignment: int = 64) -> list[int]:
    """Where each block starts, and the total as the last element."""
    offsets = [0]
    for size in sizes:
        offsets.append(offsets[-1] + -(-size // alignment) * alignment)
    return offsets


# The engines' end


class _Checked:
    """Mixed over a vLLM transfer engine: digests what reaches `load_weights`, and mends the tied head at the end."""

    received = ""

    def start_weight_update(self) -> None:
        super().start_weight_update()  # type: ignore[misc]
        digest, model = WeightsDigest(), self.model  # type: ignore[attr-defined]
        load = model.load_weights

        def load_and_digest(weights: Iterable[tuple[str, Tensor]]) -> Any:
            listed = list(weights)
            for name, tensor in listed:
                digest.add(name, tensor)
            return load(listed)

        model.load_weights = load_and_digest
        self._digest = digest

    def finish_weight_update(self) -> None:
        model = self.model  # type: ignore[attr-defined]
        del model.load_weights  # the instance attribute; the class's own method shows again
        super().finish_weight_update()  # type: ignore[misc]
        mend_tied_head(model)
        self.received = self._digest.hexdigest()


def mend_tied_head(model: torch.nn.Module) -> None:
    """Rebuild the packed copy behind a tied lm_head, which a layerwise reload on CPU leaves at the old weights."""
    head, embedding = getattr(model, "lm_head", None), getattr(getattr(model, "model", None), "embed_tokens", None)
    tied = head is not None and getattr(head, "weight", None) is not None and head is embedding
    if head is not None and (tied or getattr(getattr(model, "config", None), "tie_word_embeddings", False)):
        head.quant_method.process_weights_after_loading(head)


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


class _ShmEngine(WeightTransferEngine[ShmInitInfo, ShmUpdateInfo]):
    """Maps the learner's shared-memory file and loads from it without a copy in between."""

    init_info_cls = ShmInitInfo
    update_info_cls = ShmUpdateInfo

    def init_transfer_engine(self, init_info: ShmInitInfo) -> None:
        pass

    def start_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        # The base class would call torch.accelerator.synchronize(), which a CPU does not have.
        self.receive_weights(self.parse_update_info(update_info))

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

    def finish_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        pass


class ShmEngine(_Checked, _ShmEngine):
    pass


class IpcEngine(_Checked, IPCWeightTransferEngine):
    pass


class NcclEngine(_Checked, NCCLWeightTransferEngine):
    pass


class WeightReceiver:
    """vLLM mixes this into its workers; naming it makes them import this module, which registers the backends."""

    def received_digest(self) -> str:
        """Digest of the last weights received, "" before the first."""
        return self.weight_transfer_engine.received  # type: ignore[attr-defined]


# The table


@dataclass(frozen=True)
class Transport:
    """`worker_backend` is the engines' registered name; `trainer_info` makes the learner's init info."""

    worker_backend: str
    trainer_info: Callable[[int, str, int, int], TrainerInitInfo]  # rank, master address, port, number of workers


TRANSPORTS: dict[str, Transport] = {
    "shm": Transport("edge_shm", lambda rank, address, port, workers: ShmTrainerInitInfo(rank=rank)),
    "ipc": Transport("edge_ipc", lambda rank, address, port, workers: IPCTrainerInitInfo(rank=rank, packed=True)),
    "nccl": Transport(
        "edge_nccl",
        lambda rank, address, port, workers: NCCLTrainerInitInfo(
            rank=rank, master_address=address, master_port=port, world_size=workers + 1
        ),
    ),
}

_RECEIVERS: dict[str, type[WeightTransferEngine]] = {
    "edge_shm": ShmEngine,
    "edge_ipc": IpcEngine,
    "edge_nccl": NcclEngine,
}
for _name, _engine in _RECEIVERS.items():
    WeightTransferEngineFactory.register_engine(_name, _engine)
WeightTransferTrainerFactory.register_engine("shm", ShmTrainerEngine)


class WeightLink:
    """One rank's end of `transport` to one pool of engines; rank 0 meets their workers."""

    def __init__(
        self,
        transport: str,
        engines: list[Any],
        source: TrainerSource,
        rank: int,
        address: str,
        port: int,
        workers: int,
    ) -> None:
        self._client, self._source = VersionedClient(engines), source
        info = TRANSPORTS[transport].trainer_info(rank, address, port, workers)
        self._sender = WeightTransferTrainerFactory.trainer_init(info, client=self._client, source=source)

    def push(self, version: int) -> str:
        """Sends the source's tensors to every engine as `version`; returns their digest. Every rank calls it."""
        self._client.version = version
        self._sender.send_weights()
        return self._source.digest.hexdigest()


def export_groups(engine: ZeroEngine) -> list[list[str]]:
    """Parameter names, one group per decoder layer: the unit in which ZeRO-3 gathers."""
    return layerwise_groups([name for name, _, _ in engine.parameter_shapes()])
