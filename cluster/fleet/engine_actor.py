"""The Ray shell around an engine. Nothing is decided here."""

from collections.abc import Coroutine
from typing import Any, TypeVar

import ray

from cluster.fleet.calls import Died
from cluster.fleet.network import keep_gloo_on_this_host
from cluster.fleet.processes import last_lines
from cluster.fleet.ray_cluster import Footprint, own_footprint, settle
from cluster.models import resolve_model
from evidence.records import Floats, Ids, RolloutRequest, Sample
from rollout.config import AdapterConfig, EngineConfig, SamplingConfig

T = TypeVar("T")
RECEIVER = "cluster.weights.receiver.WeightReceiver"


@ray.remote
class EngineActor:
    """One vLLM engine, whose output goes to a log."""

    def __init__(
        self,
        name: str,
        model: str,
        config: EngineConfig,
        device: str,
        backend: str | None,
        in_flight: bool,
        adapter: AdapterConfig | None,
        sleeps: bool = False,
        key: str = "model.path",
    ) -> None:
        self.name, self.log = name, settle(name)
        self._arguments = (config, device, backend, RECEIVER if backend else None, in_flight, adapter, sleeps)
        self._model, self._key = model, key  # of the recipe, which names the model

    async def start(self) -> str:
        """Builds the engine; returns the address of its host."""
        keep_gloo_on_this_host()
        from rollout.engine import Engine

        self.engine = Engine(resolve_model(self._model, self._key, weights=True), *self._arguments)
        return str(ray.util.get_node_ip_address())

    async def footprint(self) -> Footprint:
        """The engine's processes."""
        return own_footprint()

    async def ping(self) -> None:
        """Answers once the engine's core has."""
        await self._told(self.engine.ping())

    async def log_tail(self) -> str:
        """The last lines of the log, for the message of a failure."""
        return f"  last lines of {self.log}:\n{last_lines(self.log)}"

    async def sample(
        self, requests: list[RolloutRequest], sampling: SamplingConfig, seed: int, base: bool = False
    ) -> list[Sample]:
        return await self._told(self.engine.sample(requests, sampling, seed, base))

    async def texts(self, prompts: list[Ids], sampling: SamplingConfig, num_samples: int, seed: int) -> list[list[str]]:
        return await self._told(self.engine.texts(prompts, sampling, num_samples, seed))

    async def score(self, prompts: list[Ids], responses: list[Ids], base: bool = False) -> list[Floats]:
        return await self._told(self.engine.score(prompts, responses, base))

    async def check(self, prompt_ids: Ids, response_ids: Ids, base: bool = False) -> Floats:
        return await self._told(self.engine.check(prompt_ids, response_ids, base))

    # The weight hand-off. Its requests are plain until here, so that who forwards them need not load vLLM.

    async def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        await self._told(self.engine.init_weight_transfer_engine(WeightTransferInitRequest(init_info=init_info)))

    async def start_weight_update(self) -> None:
        await self._told(self.engine.start_weight_update())

    async def update_weights(self, update_info: Any) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        await self._told(self.engine.update_weights(WeightTransferUpdateRequest(update_info=update_info)))

    async def finish_weight_update(self) -> None:
        await self._told(self.engine.finish_weight_update())

    async def update_weight_version(self, version: str) -> None:
        await self._told(self.engine.update_weight_version(version))

    async def load_adapter(self, files: dict[str, bytes], version: int) -> None:
        await self._told(self.engine.load_adapter(files, version))

    async def weight_state(self) -> tuple[int, str]:
        return await self._told(self.engine.weight_state())

    async def sleep(self) -> None:
        await self._told(self.engine.sleep())

    async def wake_up(self) -> None:
        await self._told(self.engine.wake_up())

    async def stats(self) -> dict[str, float]:
        return self.engine.tally.stats if hasattr(self, "engine") else {}

    async def shutdown(self) -> None:
        if hasattr(self, "engine"):  # not one that did not start
            self.engine.shutdown()

    async def _told(self, work: Coroutine[Any, Any, T]) -> T:
        """A dead engine core speaks through its log."""
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            return await work
        except EngineDeadError as error:
            raise Died(f"{self.name} died: {error}\n{await self.log_tail()}") from None
