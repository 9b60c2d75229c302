"""Weights between GPUs over NCCL: vLLM's own, but for the meeting.

vLLM's two ends would meet in torch's store, which asks for nothing and whose content they unpickle. NCCL's own id of a
group is a secret as well, with which NCCL turns others away: the learner makes one, and the workers get it with what
they are told by way of Ray, which asks for a token.
"""

from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from vllm.distributed.device_communicators.pynccl_wrapper import NCCLLibrary
from vllm.distributed.weight_transfer.base import TrainerInitInfo, VLLMWeightSyncClient, WeightSource
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.nccl_common import (
    NCCLWeightTransferInitInfo,
    uid_init_process_group,
    worker_init_payload,
)
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerWeightTransferEngine

from cluster.weights.transports import BUFFER, Meeting, Source
from cluster.weights.transports.vllm_source import made_by_vllm

SENDER = 0
STREAMS = 1  # vLLM has one for each buffer


@dataclass
class NcclTrainerInitInfo(TrainerInitInfo):
    """world_size: the sender and every engine worker."""

    backend: ClassVar[str] = "edge_nccl"

    world_size: int


class NcclTrainerEngine(NCCLTrainerWeightTransferEngine):
    """vLLM's, which meets the workers by an id that they are told."""

    init_info_cls = NcclTrainerInitInfo

    @classmethod
    def trainer_init(
        cls, init_info: NcclTrainerInitInfo, *, client: VLLMWeightSyncClient, source: WeightSource | None = None
    ) -> Self:
        assert source is not None
        engine = cls(
            client=client,
            source=source,
            is_sender=init_info.is_sender,
            packed_buffer_size_bytes=BUFFER,
            packed_num_buffers=STREAMS,
        )
        if engine.is_sender:
            engine._meet(init_info.world_size)
        return engine

    def send_weights(self) -> None:
        torch.accelerator.synchronize()
        super().send_weights()

    def _meet(self, world_size: int) -> None:
        unique_id = bytes(NCCLLibrary().ncclGetUniqueId())
        theirs = NCCLWeightTransferInitInfo(
            rank_offset=SENDER + 1,
            world_size=world_size,
            nccl_unique_id_b64=b64encode(unique_id).decode(),
            packed=self.packed,
            packed_buffer_size_bytes=self.packed_buffer_size_bytes,
            packed_num_buffers=self.packed_num_buffers,
        )
        device = torch.accelerator.current_device_index()
        with ThreadPoolExecutor(1) as beside:  # all enter together
            joined = beside.submit(self.client.init_weight_transfer_engine, worker_init_payload(theirs))
            self.model_update_group = uid_init_process_group(unique_id, SENDER, world_size, device)
            joined.result()


def sender(at: Meeting, client: Any, source: Source) -> Any:
    return made_by_vllm(trainer(at), client, source)


def trainer(at: Meeting) -> NcclTrainerInitInfo:
    """What vLLM's factory makes the learner's end of."""
    return NcclTrainerInitInfo(at.num_workers + 1, rank=at.rank)


WeightTransferTrainerFactory.register_engine("edge_nccl", NcclTrainerEngine)
