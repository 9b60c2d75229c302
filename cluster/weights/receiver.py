"""The engines' end of the weight hand-off: what arrives is digested and loaded, and shared heads are mended.

Naming `WeightReceiver` as vLLM's worker extension makes its workers import this module, which registers the backends.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from vllm.distributed.weight_transfer.base import WeightTransferEngine
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

from cluster.weights.digest import WeightsDigest
from cluster.weights.transports import backend
from cluster.weights.transports.receivers import RECEIVERS
from rollout.vllm_quirks import mend_experts, mend_shared_heads, partly_loaded

NAMED = 4  # of the parameters that were not reached, in a message
COLUMNS = 16  # of a head's weight that are looked at
ROUNDING = 2.0**-9  # of a number: less than any step of bfloat16, more than the rounding of a GPU's TF32


class _Checked:
    """Mixed over a vLLM transfer engine: digests what reaches `load_weights`, asks that it fills every parameter, mends
    what a reload leaves undone, and asks that heads compute with what arrived."""

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
            if filled is None:  # as vLLM lets a model do
                raise RuntimeError(
                    f"weights: found {type(model).__name__}, which does not say what it has loaded, expected the "
                    "names: a push could not be proved"
                )
            unfilled.difference_update(filled)
            return filled

        model.load_weights = load_and_digest
        self._digest, self._unfilled = digest, unfilled

    def finish_weight_update(self) -> None:
        """
        Raises:
            RuntimeError: names parameters of the engine that no weight of this push reached, or a head that computes
                with other weights.
        """
        model = self.model  # type: ignore[attr-defined]
        del model.load_weights  # the instance attribute; the class's own method shows again
        self._unfilled.update(f"parts of {name}" for name in partly_loaded(model))
        super().finish_weight_update()  # type: ignore[misc]
        if self._unfilled:
            raise RuntimeError(unfilled_line(self._unfilled))
        mend_shared_heads(model)
        mend_experts(model)
        if stale := stale_heads(model):
            raise RuntimeError(f"weights: {stale[0]} computes with other weights than it was sent, expected the same")
        self.received = self._digest.hexdigest()


def parameter_names(model: nn.Module) -> set[str]:
    """Of a layer that shares its weight, and so takes no weight of its own, the first's alone."""
    by_storage: dict[int | str, str] = {}
    for name, parameter in model.named_parameters():
        by_storage.setdefault(parameter.untyped_storage().data_ptr() or name, name)
    return set(by_storage.values())


def stale_heads(model: nn.Module) -> list[str]:
    """The embeddings and heads that compute with another weight than they hold, such as a packed copy of an older one.
    Products with unit vectors are columns of the weight, which no sum has rounded: one step of bfloat16 is seen."""
    layers = ((name, layer) for name, layer in model.named_modules() if isinstance(layer, VocabParallelEmbedding))
    return [name for name, layer in layers if _is_stale(layer)]


def _is_stale(layer: VocabParallelEmbedding) -> bool:
    weight_VH = layer.weight
    columns_C = torch.linspace(0, weight_VH.shape[1] - 1, COLUMNS).long().to(weight_VH.device)
    units_CH = torch.zeros(COLUMNS, weight_VH.shape[1], dtype=weight_VH.dtype, device=weight_VH.device)
    units_CH[torch.arange(COLUMNS), columns_C] = 1
    with torch.no_grad():
        found_CV = layer.quant_method.apply(layer, units_CH)
    return not torch.allclose(found_CV, weight_VH[:, columns_C].T, rtol=ROUNDING, atol=0.0, equal_nan=True)


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


for _name, _receiver in RECEIVERS.items():
    WeightTransferEngineFactory.register_engine(backend(_name), checked(_receiver))
