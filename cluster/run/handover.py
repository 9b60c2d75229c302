"""Weights from the learner to engines, and the proof that they arrived: version, digest, canary."""

from dataclasses import dataclass

from cluster.fleet.assembly import Services
from cluster.fleet.fleet import CanaryText
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

    async def push(self, pool: str, version: int, canary: bool = True) -> Pushed:
        """The engines of `pool` hold `version`, by its number, by a digest of what was sent and by the canary's
        log-probs.

        canary: False where what is sent is not what the learner runs.

        Raises:
            RuntimeError: names the engine that does not hold it.
        """
        digest = await self._learner.push(pool, version)
        await self._rollout.prove(pool, version, digest)
        if not canary:
            return Pushed(digest, 0.0)
        expected = await self._learner.score(f"canary at version {version}: learner", *self._text)
        return Pushed(digest, await self._rollout.canary(pool, version, CanaryText(*self._text, expected)))
