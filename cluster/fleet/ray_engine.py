"""An engine in a Ray actor."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayTaskError

from cluster.fleet.calls import Died, ask
from cluster.fleet.ray_cluster import Footprint
from evidence.records import Floats, Ids, RolloutRequest, Sample
from rollout.config import SamplingConfig


class RayEngine:
    """An `EngineActor` as an `EngineClient`."""

    def __init__(self, name: str, handle: Any) -> None:
        self.name, self._handle = name, handle
        self._footprint: Footprint | None = None

    async def start(self) -> str:
        """As `EngineClient.start`. Died where it was killed, as its actor may be: what stood before can start again."""
        try:
            host = str(await self._ask("start"))
            self._footprint = await self._ask("footprint")
            return host
        except RayTaskError as error:  # of whatever kind: vLLM's log says more than its errors
            said = f"{self.name} did not start: {one_line(error.cause)}\n{await self._ask('log_tail')}"
            raise (Died if isinstance(error.cause, Died) else RuntimeError)(said) from None

    async def sample(
        self, requests: Sequence[RolloutRequest], sampling: SamplingConfig, seed: int, base: bool
    ) -> list[Sample]:
        return list(await self._ask("sample", list(requests), sampling, seed, base))

    async def score(self, prompts: Sequence[Ids], responses: Sequence[Ids], base: bool) -> list[Floats]:
        return list(await self._ask("score", prompts, responses, base))

    async def check(self, prompt_ids: Ids, response_ids: Ids, base: bool) -> Floats:
        return np.asarray(await self._ask("check", prompt_ids, response_ids, base))

    async def texts(
        self, prompts: Sequence[Ids], sampling: SamplingConfig, num_samples: int, seed: int
    ) -> list[list[str]]:
        return list(await self._ask("texts", prompts, sampling, num_samples, seed))

    async def tell(self, verb: str, *arguments: Any) -> None:
        await self._ask(verb, *arguments)

    async def weight_state(self) -> tuple[int, str]:
        version, digest = await self._ask("weight_state")
        return int(version), str(digest)

    async def stats(self) -> dict[str, float]:
        return dict(await self._ask("stats"))

    async def ping(self) -> None:
        await self._ask("ping")

    async def stop(self) -> None:
        await self._ask("shutdown")

    def kill(self, grace_s: float = 0.0) -> None:
        """Also the processes that it started: those of an engine that hangs or was killed outlive its actor."""
        ray.kill(self._handle)
        if self._footprint is not None:
            self._footprint.end(grace_s)

    async def _ask(self, method: str, *arguments: Any) -> Any:
        return await ask(self.name, self._handle, method, *arguments)


def one_line(error: BaseException) -> str:
    """What an error says, without the log that it quotes; its kind as well where that is a mistake in the code, which
    says little."""
    said = " ".join(str(error).partition("\n  last lines of ")[0].split())
    return said if isinstance(error, (RuntimeError, ValueError, OSError)) else f"{type(error).__name__}: {said}"
