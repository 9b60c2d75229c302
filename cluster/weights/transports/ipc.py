"""Weights between processes on one GPU, by CUDA's handles: vLLM's own."""

from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo, IPCWeightTransferEngine

from cluster.weights.transports import BUFFER, Meeting

Receiver = IPCWeightTransferEngine


def trainer(at: Meeting) -> IPCTrainerInitInfo:
    """A tensor goes whole into the buffer."""
    return IPCTrainerInitInfo(rank=at.rank, packed=True, packed_buffer_size_bytes=max(BUFFER, at.largest_bytes))
