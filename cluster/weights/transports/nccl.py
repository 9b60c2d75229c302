"""Weights between GPUs over NCCL: vLLM's own."""

from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLWeightTransferEngine

from cluster.weights.transports import Meeting

Receiver = NCCLWeightTransferEngine


def trainer(at: Meeting) -> NCCLTrainerInitInfo:
    """The sender and every worker meet at the learner's address."""
    return NCCLTrainerInitInfo(
        rank=at.rank, master_address=at.address, master_port=at.port, world_size=at.num_workers + 1
    )
