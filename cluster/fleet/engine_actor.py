"""The Ray shell around an engine. Nothing is decided here."""

from functools import partial
from typing import Any

import numpy as np
import ray

from cluster.fleet.engine_process import EngineProcess
from cluster.fleet.fork_server import forked, place
from cluster.fleet.hosted_engine import HostedEngine, log_tail
from cluster.fleet.network import keep_gloo_on_this_host
from cluster.fleet.ray_cluster import Footprint, own_footprint, settle
from evidence.records import Floats, Ids, RolloutRequest, Sample
from rollout.config import AdapterConfig, EngineConfig, SamplingConfig

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
        self.log = settle(name)
        keep_gloo_on_this_host()
        self._engine: EngineProcess | HostedEngine = HostedEngine(name, self.log)
        if device == "cpu":
            at = place(config, ray.get_runtime_context().get_node_id())
            self._engine = EngineProcess(name, self.log, config, partial(forked, at))
        receiver = RECEIVER if backend else None
        self._arguments = (model, key, config, device, backend, receiver, in_flight, adapter, sleeps)

    async def start(self) -> str:
        """Builds the engine; returns the address of its host."""
        await self._engine.ask("start", *self._arguments)
        return str(ray.util.get_node_ip_address())

    async def footprint(self) -> Footprint:
        """The engine's processes."""
        return own_footprint(*self._engine.processes())

    async def log_tail(self) -> str:
        """The last lines of the log, for the message of a failure."""
        return log_tail(self.log)

    async def ping(self) -> None:
        """Answers once the engine's core has."""
        await self._engine.ask("ping")

    async def sample(
        self, requests: list[RolloutRequest], sampling: SamplingConfig, seed: int, base: bool = False
    ) -> list[Sample]:
        return list(await self._engine.ask("sample", requests, sampling, seed, base))

    async def texts(self, prompts: list[Ids], sampling: SamplingConfig, num_samples: int, seed: int) -> list[list[str]]:
        return list(await self._engine.ask("texts", prompts, sampling, num_samples, seed))

    async def score(self, prompts: list[Ids], responses: list[Ids], base: bool = False) -> list[Floats]:
        return list(await self._engine.ask("score", prompts, responses, base))

    async def check(self, prompt_ids: Ids, response_ids: Ids, base: bool = False) -> Floats:
        return np.asarray(await self._engine.ask("check", prompt_ids, response_ids, base))

    # The weight hand-off.

    async def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        await self._engine.ask("init_weight_transfer_engine", init_info)

    async def start_weight_update(self) -> None:
        await self._engine.ask("start_weight_update")

    async def update_weights(self, update_info: Any) -> None:
        await self._engine.ask("update_weights", update_info)

    async def finish_weight_update(self) -> None:
        await self._engine.ask("finish_weight_update")

    async def update_weight_version(self, version: str) -> None:
        await self._engine.ask("update_weight_version", version)

    async def load_adapter(self, files: dict[str, bytes], version: int) -> None:
        await self._engine.ask("load_adapter", files, version)

    async def weight_state(self) -> tuple[int, str]:
        version, digest = await self._engine.ask("weight_state")
        return int(version), str(digest)

    async def sleep(self) -> None:
        await self._engine.ask("sleep")

    async def wake_up(self) -> None:
        await self._engine.ask("wake_up")

    async def stats(self) -> dict[str, float]:
        return dict(await self._engine.ask("stats"))

    async def shutdown(self) -> None:
        await self._engine.ask("shutdown")
