"""Weights from the learner to engines, and the proof that they arrived: version, digest, canary."""

from collections.abc import Awaitable, Callable, Sequence

import numpy as np

from cluster.config import WeightsConfig
from cluster.fleet.assembly import Services
from cluster.fleet.canary import CanaryText
from cluster.run.figures import Pushed
from cluster.weights.parts import Sent
from evidence.records import Ids
from rollout.render import Renderer
from rollout.tasks.base import TaskPrompt

CANARY_TOKENS = 64
HONEST = 2.0  # times what engine and learner differed by under a pool's first weights, that they may differ by later
FLOOR = 0.02  # nats a token: within it, weights of different precision are not told apart
ELSE = "Which months have thirty days?", "How do I boil an egg?"  # asked where a task asks one question only


def canary_texts(prompts: Sequence[TaskPrompt], renderer: Renderer) -> list[tuple[Ids, Ids]]:
    """(prompt, response) of two canaries: the context as the answer to a question without it, and to another one. What
    training moves most is what a stale engine gets most wrong."""
    taught = [prompt for prompt in prompts if prompt.context] or prompts
    first, last = (
        (renderer.prompt_ids(prompt.turns), renderer.text_ids(prompt.context or prompt.question)[:CANARY_TOKENS])
        for prompt in (taught[0], taught[-1])
    )
    if all(map(np.array_equal, first, last)):  # the second look would be the first
        last = renderer.prompt_ids(next(text for text in ELSE if text != taught[0].question)), last[1]
    return [first, last]


class Handover:
    """
    texts: (prompt, response) of each canary: learner and engines score the first and compare, and the next where they
        differ too much on the one before.
    say: of a push that was to carry what changed, and carried whole weights.
    """

    def __init__(
        self,
        services: Services,
        texts: Sequence[tuple[Ids, Ids]],
        config: WeightsConfig,
        say: Callable[[str], None],
    ) -> None:
        self._rollout, self._learner, self._texts = services.rollout, services.learner, texts
        self._connect, self._tolerance, self._say = services.connect, config.canary_tolerance, say
        self._bounds: dict[str, float] = {}

    def go_on(self, bound: float | None) -> None:
        """bound: what the student's engines may differ by, in a run that goes on; in a new one it comes from the first
        push, whose weights nothing has changed yet."""
        if bound is not None:
            self._bounds["student"] = min(bound, self._tolerance)

    async def push(
        self, pool: str, version: int, canary: bool = True, begin: Callable[[str], Awaitable[None]] | None = None
    ) -> Pushed:
        """The engines of `pool` hold `version`, by its number, by a digest of what was sent and by the canary's
        log-probs, and get work. Who is lost meanwhile is not among them; at least one is.

        canary: False where what is sent is not what the learner runs. begin: is told the digest once it is proven, for
            what goes on while the canary is scored, and comes to nothing where that ends the run.

        Raises:
            RuntimeError: names the engine that does not hold it.
        """
        while True:
            sent = await self._sent(pool, version)
            await self._rollout.prove(pool, version, sent.digest)
            if begin is not None:
                await begin(sent.digest)
            found = await self._canary(pool, version) if canary else 0.0
            if await self._rollout.admit(pool):
                self._bounds.setdefault(pool, min(self._tolerance, max(FLOOR, HONEST * found)))
                return Pushed(sent.digest, found, self._bounds[pool], sent.seconds, sent.num_bytes)

    async def _canary(self, pool: str, version: int) -> float:
        """The largest mean difference over the engines, nats a token, on the first text whose differences are all
        within the bound. One text may differ by chance; stale weights differ on each."""
        what, bound = f"canary at version {version}", self._bounds.get(pool, self._tolerance)
        for text in self._texts:
            expected = CanaryText(*text, await self._learner.score(f"{what}: learner", *text))
            found = await self._rollout.canary(pool, version, expected)
            beyond = [name for name, difference in found.items() if not difference <= bound]
            if not beyond:
                return max(found.values(), default=0.0)
        raise RuntimeError(f"{what}: {CanaryText.line(beyond[0], 'the learner', found[beyond[0]], bound)}")

    async def _sent(self, pool: str, version: int) -> Sent:
        """What rank 0 says of it. What connects several engines breaks where one is lost amid a push, which is then
        repeated, as often as the fleet replaces one."""
        await self._connect(pool)
        while True:
            try:
                sent = await self._rollout.beside(self._learner.push(pool, version))
            except RuntimeError:
                if not await self._connect(pool):
                    raise
            else:
                if sent.whole:
                    self._say(f"weight push of version {version} to the {pool} engines: whole, since {sent.whole}")
                return sent
