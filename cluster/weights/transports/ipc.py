"""Weights between processes on one GPU, by CUDA's handles: vLLM's own."""

from typing import Any

from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

from cluster.weights.transports import BUFFER, Meeting, Source
from cluster.weights.transports.vllm_source import made_by_vllm


def sender(at: Meeting, client: Any, source: Source) -> Any:
    return made_by_vllm(trainer(at), client, source)


def trainer(at: Meeting) -> IPCTrainerInitInfo:
    """A tensor goes whole into the buffer."""
    return IPCTrainerInitInfo(rank=at.rank, packed=True, packed_buffer_size_bytes=max(BUFFER, at.largest_bytes))
