"""The engines' end of the weight hand-off: what arrives is digested and loaded, and shared heads are mended.

Naming `WeightReceiver` as vLLM's worker extension makes its workers import this module, which registers the backends.
"""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from vllm.distributed.weight_transfer.base import WeightTransferEngine
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

from cluster.weights.digest import WeightsDigest
from cluster.weights.transports import TRANSPORTS, backend, transport
from rollout.vllm_quirks import mend_experts, mend_shared_heads

NAMED = 4  # of the parameters that were not reached, in a message


class _Checked:
    """Mixed over a vLLM transfer engine: digests what reaches `load_weights`, asks that it fills every parameter, and
    mends what a reload leaves undone."""

    received = ""

    def start_weight_update(self) -> None:
        digest, model = WeightsDigest(), self.model  # type: ignore[attr-defined]
        unfilled = parameter_names(model)
        super().start_weight_update()  # type: ignore[misc]
        load = model.load_weights

        def load_and_digest(weights: Iterable[tuple[str, Tensor]]) -> Any:
            listed = list(weights)
            for name, tensor in listed:
                digest.add(name, tensor)
            filled = load(listed)
            unfilled.difference_update(unfilled if filled is None else filled)  # None: this model does not tell
            return filled

        model.load_weights = load_and_digest
        self._digest, self._unfilled = digest, unfilled

    def finish_weight_update(self) -> None:
        """
        Raises:
            RuntimeError: names parameters of the engine that no weight of this push reached.
        """
        model = self.model  # type: ignore[attr-defined]
        del model.load_weights  # the instance attribute; the class's own method shows again
        super().finish_weight_update()  # type: ignore[misc]
        if self._unfilled:
            raise RuntimeError(unfilled_line(self._unfilled))
        mend_shared_heads(model)
        mend_experts(model)
        self.received = self._digest.hexdigest()


def parameter_names(model: nn.Module) -> set[str]:
    """Of a layer that shares its weight, and so takes no weight of its own, the first's alone."""
    by_storage: dict[int | str, str] = {}
    for name, parameter in model.named_parameters():
        by_storage.setdefault(parameter.untyped_storage().data_ptr() or name, name)
    return set(by_storage.values())


def unfilled_line(names: set[str]) -> str:
    """Says which parameters a push did not reach."""
    some = ", ".join(sorted(names)[:NAMED])
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"weights: found none for {some}{more} of the engine's model, expected a weight for each in every push"


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
