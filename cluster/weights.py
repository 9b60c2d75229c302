"""Both ends of the weight hand-off, over vLLM's native weight-transfer interface.

    learner rank 0                                          every worker of every student engine
    TrainerSource --(name, tensor)--> trainer engine ====> transfer engine --> model.load_weights --> mend tied head
         \\_ WeightsDigest                                        \\_ WeightsDigest

nccl and ipc are vLLM's own engines on both sides; shm and gloo are this project's for CPUs (`cluster.cpu_transports`).
A digest compares what was sent with what was received; it cannot see what an engine made of it (a stale packed copy
behind a tied lm_head), so after each push the canary of `cluster.pipeline` compares log-probs as well.
"""

import functools
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
import torch
from torch import Tensor
from vllm.distributed.weight_transfer.base import (
    ParamMeta,
    TrainerInitInfo,
    WeightSource,
    WeightTransferEngine,
    WeightTransferInitRequest,
    layerwise_groups,
)
from vllm.distributed.weight_transfer.clients import RayVLLMWeightSyncClient
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory, WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo, IPCWeightTransferEngine
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLWeightTransferEngine
from vllm.distributed.weight_transfer.packed_tensor import DEFAULT_PACKED_BUFFER_SIZE_BYTES

from cluster.cpu_transports import (
    GlooTrainerEngine,
    GlooTrainerInitInfo,
    GlooTransferEngine,
    ShmTrainerEngine,
    ShmTrainerInitInfo,
    ShmTransferEngine,
)
from learner.adapter import adapter_files
from learner.ema import Ema
from learner.engine import ZeroEngine
from rollout.engine import files_digest

_CHUNK = 1 << 20  # words summed at one time


class WeightsDigest:
    """Order-independent digest of a set of named tensors, computed where they live.

    Per tensor: name, dtype, shape, and two sums over its bytes as 64-bit words, plain and with the word's place as an
    odd factor, modulo 2^64; SHA-256 of the sorted lines. It finds what is missing, stale, swapped or damaged; it is not
    a cryptographic proof.
    """

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}  # by the line's beginning; read at the end, all at once

    def add(self, name: str, tensor: Tensor) -> None:
        words, factors = _words(tensor.detach()), _factors(tensor.device)
        plain = weighted = torch.zeros((), dtype=torch.int64, device=tensor.device)
        for start in range(0, len(words), _CHUNK):
            part = words[start : start + _CHUNK]
            total = part.sum()
            plain = plain + total
            weighted = weighted + (part * factors[: len(part)]).sum() + 2 * start * total
        self._sums[f"{name} {tensor.dtype} {tuple(tensor.shape)}"] = plain, weighted

    def hexdigest(self) -> str:
        if not self._sums:
            return ""
        lines = [f"{line} {int(plain)} {int(weighted)}" for line, (plain, weighted) in self._sums.items()]
        return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]


def _words(tensor: Tensor) -> Tensor:
    """The tensor's bytes as int64, the last word filled up with zeros."""
    flat = tensor.contiguous().view(-1).view(torch.uint8)
    missing = -len(flat) % 8
    if missing or flat.storage_offset() % 8:
        flat = torch.cat([flat, flat.new_zeros(missing)])
    return flat.view(torch.int64)


@functools.cache
def _factors(device: torch.device) -> Tensor:
    """1, 3, 5, ... for the words of a chunk."""
    return torch.arange(1, 2 * _CHUNK, 2, dtype=torch.int64, device=device)


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

    def largest_bytes(self) -> int:
        """Of its tensors."""
        return max(meta.dtype.itemsize * math.prod(meta.shape) for meta in self.metadata())

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
    """Commits `version` on every engine when an update finishes, and gives each engine's workers ranks of their own:
    vLLM's trainer engines name no version, and know of one engine."""

    version = 0

    def __init__(self, engines: list[Any], workers_per_engine: int) -> None:
        super().__init__(engines)
        self._workers_per_engine = workers_per_engine

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        requests = []
        for index, _ in enumerate(self.handles):
            own = dict(init_info)
            if "rank_offset" in own:
                own["rank_offset"] += index * self._workers_per_engine
            requests.append(WeightTransferInitRequest(init_info=own))
        pairs = zip(self.handles, requests, strict=True)
        ray.get([handle.init_weight_transfer_engine.remote(request) for handle, request in pairs])

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        super().finish_weight_update(weight_version or str(self.version))


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


class ShmEngine(_Checked, ShmTransferEngine):
    pass


class GlooEngine(_Checked, GlooTransferEngine):
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
    trainer_info: Callable[["Meeting"], TrainerInitInfo]


@dataclass(frozen=True)
class Meeting:
    """Where the learner's ranks and the engines' workers find each other."""

    rank: int  # of the learner
    address: str
    port: int
    num_workers: int
    timeout_s: float
    largest_bytes: int  # of the tensors that are sent


TRANSPORTS: dict[str, Transport] = {
    "shm": Transport("edge_shm", lambda at: ShmTrainerInitInfo(rank=at.rank)),
    "gloo": Transport(
        "edge_gloo",
        lambda at: GlooTrainerInitInfo(at.address, at.port, at.num_workers + 1, at.timeout_s, rank=at.rank),
    ),
    "ipc": Transport(
        "edge_ipc",
        lambda at: IPCTrainerInitInfo(
            rank=at.rank,
            packed=True,
            packed_buffer_size_bytes=max(DEFAULT_PACKED_BUFFER_SIZE_BYTES, at.largest_bytes),
        ),
    ),
    "nccl": Transport(
        "edge_nccl",
        lambda at: NCCLTrainerInitInfo(
            rank=at.rank, master_address=at.address, master_port=at.port, world_size=at.num_workers + 1
        ),
    ),
}

_RECEIVERS: dict[str, type[WeightTransferEngine]] = {
    "edge_shm": ShmEngine,
    "edge_gloo": GlooEngine,
    "edge_ipc": IpcEngine,
    "edge_nccl": NcclEngine,
}
for _name, _engine in _RECEIVERS.items():
    WeightTransferEngineFactory.register_engine(_name, _engine)
WeightTransferTrainerFactory.register_engine("shm", ShmTrainerEngine)
WeightTransferTrainerFactory.register_engine("gloo", GlooTrainerEngine)


class WeightLink:
    """One rank's end of `transport` to one pool of engines; rank 0 meets their workers."""

    def __init__(self, transport: str, engines: list[Any], source: TrainerSource, meeting: Meeting) -> None:
        self._client, self._source = VersionedClient(engines, meeting.num_workers // len(engines)), source
        info = TRANSPORTS[transport].trainer_info(meeting)
        self._sender = WeightTransferTrainerFactory.trainer_init(info, client=self._client, source=source)

    def push(self, version: int) -> str:
        """Sends the source's tensors to every engine as `version`; returns their digest. Every rank calls it."""
        self._client.version = version
        self._sender.send_weights()
        return self._source.digest.hexdigest()


class AdapterLink:
    """One rank's end for an adapter: its files, as one object of Ray's, to every engine."""

    def __init__(self, engines: list[Any], engine: ZeroEngine) -> None:
        self._engines, self._engine = engines, engine

    def push(self, version: int) -> str:
        """As `WeightLink.push`; rank 0 knows the digest."""
        groups = layerwise_groups(self._engine.trained_names())
        named = [(name, tensor.to("cpu", copy=True)) for name, tensor in self._engine.full_tensors(groups)]
        if self._engine.rank != 0:
            return ""
        files = adapter_files(named, self._engine.config)
        sent = ray.put(files)
        ray.get([handle.load_adapter.remote(sent, version) for handle in self._engines])
        return files_digest(files)


def export_groups(engine: ZeroEngine) -> list[list[str]]:
    """Parameter names, one group per decoder layer: the unit in which ZeRO-3 gathers."""
    return layerwise_groups([name for name, _, _ in engine.parameter_shapes()])
