"""An event loop whose clock jumps to what it waits for: sleeps cost nothing, and the same work takes the same time."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._beside = 0  # calls in threads, which the clock waits for

    def time(self) -> float:
        return self._now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled and not self._beside:  # type: ignore[attr-defined]
            self._now = max(self._now, self._scheduled[0]._when)  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]

    def run_in_executor(self, executor: Any, call: Any, *arguments: Any) -> "asyncio.Future[Any]":
        self._beside += 1
        answer = super().run_in_executor(executor, call, *arguments)
        answer.add_done_callback(self._settle)
        return answer

    def _settle(self, _: object) -> None:
        self._beside -= 1


def run_virtual(work: Coroutine[Any, Any, T]) -> T:
    """`work` to its end. Only for what waits on time and on itself: nothing of the world outside moves this clock."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(work)
