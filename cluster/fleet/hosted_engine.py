"""An engine, and what it is asked for by name, in whichever process it is: the actor's own, or one of its."""

from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from cluster.fleet.calls import Died
from cluster.fleet.processes import last_lines
from cluster.models import resolve_model
from rollout.engine import Engine

T = TypeVar("T")


class HostedEngine:
    """The methods of `rollout.engine.Engine`, but for what the weight hand-off is told: its requests are plain until
    here, so that who forwards them need not load vLLM.

    name: for messages. log: where the engine's output goes.
    """

    engine: Engine | None = None

    def __init__(self, name: str, log: str) -> None:
        self.name, self.log = name, log

    def processes(self) -> Sequence[int]:
        """That hold it, beside this one and what it has started."""
        return ()

    async def ask(self, method: str, *arguments: Any) -> Any:
        """What the engine's method answers. A dead core speaks through its log."""
        own = getattr(self, f"_{method}", None)
        return await self._told(own(*arguments) if own else getattr(self.engine, method)(*arguments))

    async def _start(self, model: str, key: str, *arguments: Any) -> None:
        """model: what the recipe's `key` names. arguments: of `Engine` beside it."""
        self.engine = Engine(resolve_model(model, key, weights=True), *arguments)

    async def _init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        await self._begun().init_weight_transfer_engine(WeightTransferInitRequest(init_info=init_info))

    async def _update_weights(self, update_info: Any) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        await self._begun().update_weights(WeightTransferUpdateRequest(update_info=update_info))

    async def _stats(self) -> dict[str, float]:
        return self.engine.tally.stats if self.engine else {}

    async def _shutdown(self) -> None:
        if self.engine:  # not one that did not start
            self.engine.shutdown()

    def _begun(self) -> Engine:
        assert self.engine is not None, self.name
        return self.engine

    async def _told(self, work: Coroutine[Any, Any, T]) -> T:
        if self.engine is None:
            return await work
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            return await work
        except EngineDeadError as error:
            raise Died(f"{self.name} died: {error}\n{log_tail(self.log)}") from None


def log_tail(log: str) -> str:
    """The last lines of an engine's log, for the message of a failure."""
    return f"  last lines of {log}:\n{last_lines(log)}"
