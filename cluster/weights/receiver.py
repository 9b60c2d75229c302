"""The engines' end of the weight hand-off: what arrives is digested and loaded, and shared heads are mended.

Naming `WeightReceiver` as vLLM's worker extension makes its workers import this module, which registers the backends.
"""

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from vllm.distributed.weight_transfer.base import WeightTransferEngine
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

from cluster.weights.digest import WeightsDigest
from cluster.weights.transports import TRANSPORTS, backend, transport
from rollout.vllm_quirks import mend_shared_heads


class _Checked:
    """Mixed over a vLLM transfer engine: digests what reaches `load_weights`, and mends shared heads at the end."""

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
        mend_shared_heads(model)
        self.received = self._digest.hexdigest()


def checked(receiver: type[WeightTransferEngine[Any, Any]]) -> type[WeightTransferEngine[Any, Any]]:
    """The engine that transfers as `receiver`, and checks what arrives."""
    return type(f"Checked{receiver.__name__}", (_Checked, receiver), {})


class WeightReceiver:
    """vLLM mixes this into its workers; naming it makes them import this module, which registers the backends."""

    def received_digest(self) -> str:
        """Digest of the last weights received, "" before the first."""
        return self.weight_transfer_engine.received  # type: ignore[attr-defined]


for _name in TRANSPORTS:
    WeightTransferEngineFactory.register_engine(backend(_name), checked(transport(_name).Receiver))
