"""The places of a placement, each with an engine, and after that died or hung with its successor.

    starting --start--> standing --enlist--> enlisted --admit--> serving
        ^                                                          |
        |____________ lose: it died, or does not answer ___________|   (from each of them)

Who takes weights from the learner is enlisted by the learner's next push, and serves once version, digest and canary
are the learner's. A frozen teacher serves once it scores as the one before it did.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cluster.faults import Restarts
from cluster.fleet.calls import Died, within
from cluster.fleet.engines import EngineClient, Maker

T = TypeVar("T")
TOKENS = ("prompt_tokens", "generated_tokens")  # what an engine counts as it gets on


@dataclass(eq=False)
class Seat:
    """One place: its engine, how far that is, and how often it was replaced.

    pool: "student" or "teacher". stands: it has started. enlisted: it takes part in pushes. serves: it gets work.
    """

    pool: str
    make: Maker
    restarts: Restarts
    engine: EngineClient = field(init=False)
    stands: bool = False
    enlisted: bool = False
    serves: bool = False
    is_lost: bool = False
    asked: int = 0  # calls under way which have a deadline of their own
    pinged: bool = False  # one of them is the watch's
    _tokens: float = 0.0
    _lost_at: float | None = None  # until its successor serves
    _moved: float = 0.0  # when the engine has last been seen to get on
    _calls: "set[asyncio.Task[Any]]" = field(default_factory=set)

    def __post_init__(self) -> None:
        self.engine = self.make()

    def renew(self) -> EngineClient:
        """A new engine in this place, which has not started."""
        self.engine, self.is_lost = self.make(), False
        return self.engine

    def has(self, engine: EngineClient) -> bool:
        """Whether it is this one, and not lost."""
        return self.engine is engine and not self.is_lost

    def serve(self) -> float | None:
        """The engine gets work. Returns the seconds without one in this place where one was lost."""
        self.serves = True
        lost_at, self._lost_at = self._lost_at, None
        return None if lost_at is None else asyncio.get_running_loop().time() - lost_at

    @property
    def name(self) -> str:
        return self.engine.name

    def call(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """`work` of the engine, which is given up when the engine is lost."""
        task = asyncio.create_task(work)
        self.asked += 1
        self._calls.add(task)
        task.add_done_callback(self._settle)
        return task

    async def require_life(self, seconds: float, sequences: Callable[[], int]) -> None:
        """The engine answers, and gets on with the `sequences` that it has under way.

        Raises:
            TimeoutError: not within `seconds`; names it.
        """
        self.pinged = True
        try:
            await within(seconds, self.name, self.call(self.engine.ping()))
            stats = await within(seconds, self.name, self.call(self.engine.stats()))
        finally:
            self.pinged = False
        before, self._tokens = self._tokens, sum(stats.get(name, 0.0) for name in TOKENS)
        if self._tokens != before or not sequences() or not stats:
            self.get_on()
        if asyncio.get_running_loop().time() - self._moved > seconds:
            raise TimeoutError(f"{self.name}: no token of {sequences()} sequences within {seconds:g} s")

    def get_on(self) -> None:
        """The engine gets on, or has nothing to get on with, or does something else."""
        self._moved = asyncio.get_running_loop().time()

    def _settle(self, task: "asyncio.Task[Any]") -> None:
        self.asked -= 1
        self._calls.discard(task)

    def lose(self) -> None:
        """Ends the engine, whatever it is doing, and what waits for it."""
        self.stands = self.enlisted = self.serves = False
        self.is_lost = True
        if self._lost_at is None:  # otherwise a successor is lost that has not served
            self._lost_at = asyncio.get_running_loop().time()
        for task in self._calls:
            task.cancel()
        self.engine.kill()


def failure_of(task: "asyncio.Task[Any]", silent: TimeoutError) -> Exception | None:
    """Of a call that was waited for; one that was given up is of an engine that was lost meanwhile."""
    if not task.done():
        return silent
    if task.cancelled():
        return Died("was lost meanwhile")
    error = task.exception()
    assert error is None or isinstance(error, Exception), error
    return error
