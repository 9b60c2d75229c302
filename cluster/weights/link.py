"""The learner's end of the weight hand-off, over vLLM's native weight-transfer interface.

    learner rank 0                                          every worker of every student engine
    TrainerSource --(name, tensor)--> trainer engine ====> transfer engine --> model.load_weights --> mend tied head
         \\_ WeightsDigest    \\                                  \\_ WeightsDigest
                              \\_ FleetClient --> rollout service --> every engine: start, update, finish, version

nccl and ipc are vLLM's own engines on both sides; shm and gloo are this project's (`cluster.weights.transports`).
A digest compares what was sent with what was received; it cannot see what an engine made of it (a stale packed copy
behind a tied lm_head), so after each push the canary of `cluster.run.pipeline` compares log-probs as well.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import GetTimeoutError

from cluster.weights.parts import Sent
from cluster.weights.source import TrainerSource, by_layer
from cluster.weights.transports import Meeting, transport
from learner.adapter import adapter_files
from learner.engine import ZeroEngine
from learner.parts import PartClock
from rollout.engine import files_digest

GRACE_S = 10.0  # by which the service's own deadline, which gives the name, comes first


class FleetClient:
    """vLLM's VLLMWeightSyncClient over the rollout service, which tells every engine of a pool. It commits `version`
    as an update finishes: vLLM's trainer engines name none.

    rollout: the service's handle, with the method `tell` of `RolloutActor`. clock: of the push under way.
    """

    version = 0

    def __init__(self, rollout: Any, pool: str) -> None:
        self._rollout, self._pool, self._seconds = rollout, pool, 0.0
        self.clock = PartClock(on_gpu=False)

    @contextmanager
    def until(self, seconds: float) -> Iterator[None]:
        """Within it engines may be told things, each for that long: one that does not answer leaves the others theirs.
        The service names it."""
        self._seconds = seconds
        yield
        self._seconds = 0.0

    def tell(self, verb: str, *arguments: Any) -> None:
        """
        Raises:
            TimeoutError: the rollout service does not answer, which names an engine that does not by itself.
        """
        answer = self._rollout.tell.remote(self._pool, verb, arguments, self._seconds)
        try:
            ray.get(answer, timeout=self._seconds + GRACE_S)
        except GetTimeoutError:
            what = f"{verb} to the {self._pool} engines: no answer from the rollout service"
            raise TimeoutError(f"{what} within {self._seconds + GRACE_S:g} s") from None

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.tell("init_weight_transfer_engine", init_info)

    def start_weight_update(self) -> None:
        self.tell("start_weight_update")
        self.clock.mark("pause")

    def update_weights(self, update_info: Any) -> None:
        self.tell("update_weights", update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.tell("finish_weight_update")
        self.tell("update_weight_version", weight_version or str(self.version))


class WeightLink:
    """One rank's end of the transport `name` to one pool of engines; rank 0 meets their workers."""

    def __init__(self, name: str, client: FleetClient, source: TrainerSource, meeting: Meeting) -> None:
        self.client, self._source, self._pushes = client, source, meeting.pushes
        self._clock = client.clock = source.clock = PartClock(source.on_gpu)
        self._sender = transport(name).sender(meeting, client, source)

    def push(self, version: int) -> Sent:
        """Sends the source's tensors to every engine as `version`. Every rank calls it."""
        self.client.version = version
        self._clock.start()
        self._sender.send_weights()
        self._clock.mark("load")  # since the last tensor was given to the transport
        digest = self._source.digest.hexdigest()
        self._clock.mark("digest")
        seconds, pushes = self._clock.take(), self._pushes
        if pushes is None:
            return Sent(digest, seconds, self._source.num_bytes)
        return Sent(digest, seconds, pushes.num_bytes, pushes.whole)


class AdapterLink:
    """One rank's end for an adapter: its files, to every engine."""

    def __init__(self, client: FleetClient, engine: ZeroEngine) -> None:
        self.client, self._engine = client, engine
        self._clock = PartClock(engine.device.type == "cuda")

    def push(self, version: int) -> Sent:
        """As `WeightLink.push`; rank 0 knows the digest."""
        self._clock.start()
        groups = by_layer(self._engine.trained_names())
        named = [(name, tensor.to("cpu", copy=True)) for name, tensor in self._engine.full_tensors(groups)]
        if self._engine.rank != 0:
            return Sent("")
        files = adapter_files(named, self._engine.config)
        self._clock.mark("gather")
        self.client.tell("load_adapter", files, version)
        self._clock.mark("load")
        digest = files_digest(files)
        self._clock.mark("digest")
        return Sent(digest, self._clock.take(), sum(map(len, files.values())))
