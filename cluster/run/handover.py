"""Weights from the learner to engines, and the proof that they arrived: version, digest, canary."""

from dataclasses import dataclass

from cluster.fleet.assembly import Services
from cluster.fleet.roster import CanaryText
from evidence.records import Ids


@dataclass(frozen=True)
class Pushed:
    """The weights that the engines hold."""

    digest: str
    canary: float  # the largest difference from the learner over the engines, in nats a token


class Handover:
    """prompt_ids, response_ids: the canary's text, which learner and engines score and compare."""

    def __init__(self, services: Services, prompt_ids: Ids, response_ids: Ids) -> None:
        self._rollout, self._learner, self._text = services.rollout, services.learner, (prompt_ids, response_ids)
        self._connect = services.connect

    async def push(self, pool: str, version: int, canary: bool = True) -> Pushed:
        """The engines of `pool` hold `version`, by its number, by a digest of what was sent and by the canary's
        log-probs, and get work. Who is lost meanwhile is not among them; at least one is.

        canary: False where what is sent is not what the learner runs.

        Raises:
            RuntimeError: names the engine that does not hold it.
        """
        while True:
            pushed = await self._proven(pool, version, canary)
            if await self._rollout.admit(pool):
                return pushed

    async def _proven(self, pool: str, version: int, canary: bool) -> Pushed:
        digest = await self._sent(pool, version)
        await self._rollout.prove(pool, version, digest)
        if not canary:
            return Pushed(digest, 0.0)
        expected = await self._learner.score(f"canary at version {version}: learner", *self._text)
        return Pushed(digest, await self._rollout.canary(pool, version, CanaryText(*self._text, expected)))

    async def _sent(self, pool: str, version: int) -> str:
        """The digest. What connects several engines breaks where one is lost amid a push, which is then repeated."""
        await self._connect(pool)
        try:
            return await self._learner.push(pool, version)
        except RuntimeError:
            if not await self._connect(pool):
                raise
            return await self._learner.push(pool, version)
