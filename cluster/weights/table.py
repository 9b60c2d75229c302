"""The transports, by the name that a recipe gives them: the learner's end of each."""

from collections.abc import Callable
from dataclasses import dataclass

from vllm.distributed.weight_transfer.base import TrainerInitInfo
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
from vllm.distributed.weight_transfer.packed_tensor import DEFAULT_PACKED_BUFFER_SIZE_BYTES

from cluster.weights.transports.gloo import GlooTrainerEngine, GlooTrainerInitInfo
from cluster.weights.transports.shm import ShmTrainerEngine, ShmTrainerInitInfo


@dataclass(frozen=True)
class Meeting:
    """Where the learner's ranks and the engines' workers find each other."""

    rank: int  # of the learner
    address: str
    port: int
    num_workers: int
    timeout_s: float
    largest_bytes: int  # of the tensors that are sent


# Its engines' end is registered as "edge_NAME" (`cluster.weights.receiver`).
TRANSPORTS: dict[str, Callable[[Meeting], TrainerInitInfo]] = {
    "shm": lambda at: ShmTrainerInitInfo(rank=at.rank),
    "gloo": lambda at: GlooTrainerInitInfo(at.address, at.port, at.num_workers + 1, at.timeout_s, rank=at.rank),
    "ipc": lambda at: IPCTrainerInitInfo(
        rank=at.rank, packed=True, packed_buffer_size_bytes=max(DEFAULT_PACKED_BUFFER_SIZE_BYTES, at.largest_bytes)
    ),
    "nccl": lambda at: NCCLTrainerInitInfo(
        rank=at.rank, master_address=at.address, master_port=at.port, world_size=at.num_workers + 1
    ),
}

WeightTransferTrainerFactory.register_engine("shm", ShmTrainerEngine)
WeightTransferTrainerFactory.register_engine("gloo", GlooTrainerEngine)
