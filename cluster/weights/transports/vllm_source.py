"""The learner's weights for vLLM's own trainer engines."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from vllm.distributed.weight_transfer.base import ParamMeta, TrainerInitInfo, WeightSource
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

from cluster.weights.transports import Source


class VllmSource(WeightSource):
    """A `Source` as vLLM takes one."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(meta.name, meta.dtype, meta.shape) for meta in self._source.metadata()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return iter(self._source)


def made_by_vllm(info: TrainerInitInfo, client: Any, source: Source) -> Any:
    """The learner's end, as vLLM's factory makes it."""
    return WeightTransferTrainerFactory.trainer_init(info, client=client, source=VllmSource(source))
