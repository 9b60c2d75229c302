"""Both ends of the weight hand-off, over vLLM's native weight-transfer interface.

    learner rank 0                                          every worker of every student engine
    TrainerSource --(name, tensor)--> trainer engine ====> transfer engine --> model.load_weights --> mend tied head
         \\_ WeightsDigest                                        \\_ WeightsDigest

nccl and ipc are vLLM's own engines on both sides; shm and gloo are this project's (`cluster.weights.transports`).
A digest compares what was sent with what was received; it cannot see what an engine made of it (a stale packed copy
behind a tied lm_head), so after each push the canary of `cluster.run.pipeline` compares log-probs as well.
"""

from typing import Any

import ray
from vllm.distributed.weight_transfer.base import WeightTransferInitRequest, layerwise_groups
from vllm.distributed.weight_transfer.clients import RayVLLMWeightSyncClient
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

from cluster.weights.source import TrainerSource
from cluster.weights.table import TRANSPORTS, Meeting
from learner.adapter import adapter_files
from learner.engine import ZeroEngine
from rollout.engine import files_digest


class VersionedClient(RayVLLMWeightSyncClient):
    """Commits `version` on every engine when an update finishes, and gives each engine's workers ranks of their own:
    vLLM's trainer engines name no version, and know of one engine."""

    version = 0

    def __init__(self, engines: list[Any], workers_per_engine: int) -> None:
        super().__init__(engines)
        self._workers_per_engine = workers_per_engine

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        requests = []
        for index, _ in enumerate(self.handles):
            own = dict(init_info)
            if "rank_offset" in own:
                own["rank_offset"] += index * self._workers_per_engine
            requests.append(WeightTransferInitRequest(init_info=own))
        pairs = zip(self.handles, requests, strict=True)
        ray.get([handle.init_weight_transfer_engine.remote(request) for handle, request in pairs])

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        super().finish_weight_update(weight_version or str(self.version))


class WeightLink:
    """One rank's end of `transport` to one pool of engines; rank 0 meets their workers."""

    def __init__(self, transport: str, engines: list[Any], source: TrainerSource, meeting: Meeting) -> None:
        self._client, self._source = VersionedClient(engines, meeting.num_workers // len(engines)), source
        info = TRANSPORTS[transport].trainer_info(meeting)
        self._sender = WeightTransferTrainerFactory.trainer_init(info, client=self._client, source=source)

    def push(self, version: int) -> str:
        """Sends the source's tensors to every engine as `version`; returns their digest. Every rank calls it."""
        self._client.version = version
        self._sender.send_weights()
        return self._source.digest.hexdigest()


class AdapterLink:
    """One rank's end for an adapter: its files, as one object of Ray's, to every engine."""

    def __init__(self, engines: list[Any], engine: ZeroEngine) -> None:
        self._engines, self._engine = engines, engine

    def push(self, version: int) -> str:
        """As `WeightLink.push`; rank 0 knows the digest."""
        groups = layerwise_groups(self._engine.trained_names())
        named = [(name, tensor.to("cpu", copy=True)) for name, tensor in self._engine.full_tensors(groups)]
        if self._engine.rank != 0:
            return ""
        files = adapter_files(named, self._engine.config)
        sent = ray.put(files)
        ray.get([handle.load_adapter.remote(sent, version) for handle in self._engines])
        return files_digest(files)
