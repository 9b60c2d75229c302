"""Two transports of weights between CPUs, for which vLLM has none: shared memory on one host, gloo between hosts.

Each has a learner's end, driven as vLLM's own trainer engines are, and an engine's end. What arrives is checked in
`cluster.weights.receiver`, whatever brought it.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, Self, TypeVar

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
