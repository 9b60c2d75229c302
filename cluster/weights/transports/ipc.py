"""Weights between processes on one GPU, by CUDA's handles: vLLM's own."""

from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo, IPCWeightTransferEngine
from vllm.distributed.weight_transfer.packed_tensor import DEFAULT_PACKED_BUFFER_SIZE_BYTES

from cluster.weights.transports import Meeting

Receiver = IPCWeightTransferEngine


def trainer(at: Meeting) -> IPCTrainerInitInfo:
    """A tensor goes whole into the buffer."""
    size = max(DEFAULT_PACKED_BUFFER_SIZE_BYTES, at.largest_bytes)
    return IPCTrainerInitInfo(rank=at.rank, packed=True, packed_buffer_size_bytes=size)
