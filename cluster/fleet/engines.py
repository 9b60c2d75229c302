"""One engine, wherever it runs: what the fleet asks of it, an actor (`ray_engine`) or a server (`http_engine`)."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from evidence.records import Floats, Ids, RolloutRequest, Sample
from rollout.config import SamplingConfig


class EngineClient(Protocol):
    """An engine that the fleet can speak to. Rows, log-probs and versions are those of `rollout.engine.Engine`.

    name: for messages, such as "student engine 0".
    base: by the model itself, without the adapter that the engine may have.
    """

    name: str

    async def start(self) -> str:
        """The address of the engine's host, once it answers. RuntimeError names the engine and quotes its log."""

    async def sample(
        self, requests: Sequence[RolloutRequest], sampling: SamplingConfig, seed: int, base: bool
    ) -> list[Sample]:
        """One response a request, in their order."""

    async def score(self, prompts: Sequence[Ids], responses: Sequence[Ids], base: bool) -> list[Floats]:
        """log pi(y_t | prompt, y_<t), float32 [T] a row, in the rows' order."""

    async def check(self, prompt_ids: Ids, response_ids: Ids, base: bool) -> Floats:
        """`score` of one row, before what waits; the engine's other work does not hold it up."""

    async def texts(
        self, prompts: Sequence[Ids], sampling: SamplingConfig, num_samples: int, seed: int
    ) -> list[list[str]]:
        """`num_samples` decoded answers a prompt."""

    async def tell(self, verb: str, *arguments: Any) -> None:
        """A verb of the weight hand-off, such as "update_weights", or "sleep" or "wake_up"."""

    async def weight_state(self) -> tuple[int, str]:
        """(version, digest of the weights received)."""

    async def stats(self) -> dict[str, float]:
        """What the engine counts of itself, `rollout.tally.FIGURES`; nothing where it cannot be asked."""

    async def ping(self) -> None:
        """Answers while the engine works, between two of its steps. `Died` where it is no more."""

    async def stop(self) -> None:
        """Ends the engine and what it started."""

    def kill(self, grace_s: float = 0.0) -> None:
        """Ends the engine, and what it started. grace_s: which one that was stopped has to end by itself."""


Maker = Callable[[], EngineClient]  # of the engine of one place of the placement; each time a new one

OPENING = "init_weight_transfer_engine"  # of a weight transport
