"""A weight receiver that leaves the tied lm_head stale, as a plain layerwise reload on CPU does."""

from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

import cluster.weights.receiver as weights
from cluster.weights.transports.receivers import RECEIVERS


class UnmendedEngine(weights.checked(RECEIVERS["shm"])):  # type: ignore[misc]
    def finish_weight_update(self) -> None:
        mend, weights.mend_shared_heads = weights.mend_shared_heads, lambda model: None
        try:
            super().finish_weight_update()
        finally:
            weights.mend_shared_heads = mend


class UnmendedReceiver(weights.WeightReceiver):
    pass


WeightTransferEngineFactory.register_engine("edge_unmended", UnmendedEngine)
