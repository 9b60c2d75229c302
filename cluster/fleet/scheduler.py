"""Which engine does what, and when: an engine's work is counted once, whoever asks for it."""

import asyncio
import heapq
import itertools
from bisect import bisect_left, insort
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, TypeVar

from cluster.fleet.calls import Died
from cluster.fleet.engines import EngineClient
from evidence.records import Floats, Ids, RolloutRequest, Sample
from evidence.telemetry import Activity
from rollout.config import SamplingConfig

T = TypeVar("T")
Members = list[int]  # of one group: places in the caller's list
BATCHES = 2  # of sequences that an engine holds: one that it runs, and one to go on with as sequences end


class Lane(IntEnum):
    """What waits, the most urgent first: scores end a group, the loop stands still for a probe, samples begin one."""

    SCORE = 0
    PROBE = 1
    SAMPLE = 2


@dataclass(frozen=True)
class Work:
    """A piece of work for one engine."""

    sequences: int
    tokens: int


class _Lost(Exception):
    """The engine of a call is no more, and another is to be asked."""


@dataclass(eq=False)
class Load:
    """What an engine has under way. number: in the order in which engines were opened."""

    engine: EngineClient
    number: int = 0
    sequences: int = 0
    tokens: int = 0
    is_lost: bool = False
    _calls: "dict[asyncio.Future[Any], None]" = field(default_factory=dict)  # in the order in which they began

    @property
    def place(self) -> "tuple[int, int, Load]":
        """Among all loads, of which the first is to get work."""
        return self.tokens, self.number, self

    async def run(self, call: Callable[[EngineClient], Awaitable[T]]) -> T:
        """What `call` makes of the engine; `_Lost` once `lose` is called, whether or not the engine answers."""
        task = asyncio.ensure_future(call(self.engine))
        self._calls[task] = None
        try:
            return await task
        except asyncio.CancelledError:
            mine = asyncio.current_task()
            if not self.is_lost or (mine is not None and mine.cancelling()):
                raise
            raise _Lost from None
        finally:
            self._calls.pop(task)

    def lose(self) -> None:
        """Gives up every call, the oldest first, so that it is first where others have room."""
        self.is_lost = True
        for task in self._calls:
            task.cancel()


# lane, order of arrival, and the load that it goes to
Waiting = tuple[Lane, int, Work, "asyncio.Future[Load]"]


class Scheduler:
    """Each piece of work goes to the engine with the fewest outstanding tokens that has room. What is beyond the
    engines' room waits here, and not in the queue of an engine that may be slow: such an engine delays what it has
    begun and nothing else. Within a lane: first come, first served.

    An engine may be lost and another opened at any time: what the lost one had begun waits again, in its old place.
    on_death: is called when an engine has died in a call; it calls `lose`, or raises to end the call. Without it deaths
    are raised.

    max_num_seqs: sequences that one engine runs at a time. It holds `BATCHES` times as many, and no more, for
    rollouts, scores, probes and a LoRA base together; an engine that is not full takes a piece of any size.
    activity: when each engine did what.
    """

    def __init__(
        self,
        engines: Sequence[EngineClient],
        max_num_seqs: int,
        activity: Activity | None = None,
        on_death: Callable[[EngineClient, Died], None] | None = None,
    ) -> None:
        self._activity = activity or Activity()
        self._room, self._on_death = BATCHES * max_num_seqs, on_death
        self._waiting: list[Waiting] = []  # a heap
        self._numbers = itertools.count()
        self._failure: Exception | None = None
        self.loads: list[Load] = []
        self._open: list[tuple[int, int, Load]] = []  # places of the loads with room, in order: engines may be hundreds
        for engine in engines:
            self.open(engine)

    @property
    def num_waiting(self) -> int:
        """Pieces of work without an engine."""
        return sum(not place.cancelled() for *_, place in self._waiting)

    def load_of(self, engine: EngineClient) -> Load:
        """What the engine has under way: nothing where it takes no work."""
        return next((load for load in self.loads if load.engine is engine), Load(engine))

    def open(self, engine: EngineClient) -> None:
        """The engine takes work from now on."""
        load = Load(engine, next(self._numbers))
        self.loads.append(load)
        insort(self._open, load.place)
        self._give_out()

    def lose(self, engine: EngineClient) -> None:
        """The engine takes no more work, and what it has begun goes to others."""
        for load in [load for load in self.loads if load.engine is engine]:
            self.loads.remove(load)
            load.lose()
            self._book(load, 0, 0)

    def fail(self, failure: Exception) -> None:
        """Whatever waits ends so, whatever is under way, since its engine may be one that never answers, and whatever
        comes."""
        self._failure = failure
        for load in self.loads:
            load.lose()
        for *_, place in self._waiting:
            if not place.done():
                place.set_exception(failure)
        self._waiting.clear()

    async def run(self, lane: Lane, work: Work, call: Callable[[EngineClient], Awaitable[T]]) -> T:
        """What `call` makes of an engine, once one has room for `work`; of another where the first is lost."""
        number = next(self._numbers)
        while True:
            load = await self._place(lane, number, work)
            try:
                with self._activity.piece(load.engine.name, lane.name.lower()):
                    return await load.run(call)
            except _Lost:
                continue
            except Died as death:
                if self._on_death is None:
                    raise
                self._on_death(load.engine, death)
            finally:
                self._book(load, -work.sequences, -work.tokens)
                self._give_out()

    async def _place(self, lane: Lane, number: int, work: Work) -> Load:
        """An engine's room, in the order of lanes and numbers."""
        if self._failure is not None:
            raise self._failure
        place: asyncio.Future[Load] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (lane, number, work, place))
        self._give_out()
        try:
            return await place
        except asyncio.CancelledError:
            if not place.cancelled() and place.exception() is None:  # an engine was found
                self._book(place.result(), -work.sequences, -work.tokens)
                self._give_out()
            raise

    def _give_out(self) -> None:
        """Places what waits, as far as there is room."""
        while self._waiting:
            *_, work, place = self._waiting[0]
            if not place.cancelled():
                if not self._open:
                    return
                lightest = self._open[0][-1]
                self._book(lightest, work.sequences, work.tokens)
                place.set_result(lightest)
            heapq.heappop(self._waiting)

    def _book(self, load: Load, sequences: int, tokens: int) -> None:
        """So much more is under way at the load; its place among those with room follows."""
        found = bisect_left(self._open, load.place)
        if self._open[found : found + 1] == [load.place]:
            del self._open[found]
        load.sequences += sequences
        load.tokens += tokens
        if load.sequences < self._room and not load.is_lost:
            insort(self._open, load.place)


class EnginePool:
    """A scheduler's engines as one `Sampler` and `Scorer`. Rows with one prompt go together, so that they share its
    prefill.

    base: by the model itself, without the adapter that the engines may have.
    """

    def __init__(self, scheduler: Scheduler, base: bool = False) -> None:
        self._scheduler, self._base = scheduler, base

    async def sample(
        self,
        requests: Sequence[RolloutRequest],
        sampling: SamplingConfig,
        seed: int,
        *,
        begun: Callable[[], None] = lambda: None,
    ) -> list[Sample]:
        """One response per request of a group, in their order, all from one engine. begun: is told when an engine takes
        them, and again where another has to."""
        work = Work(len(requests), len(requests) * sampling.max_tokens)

        async def draw(engine: EngineClient) -> list[Sample]:
            begun()
            return await engine.sample(requests, sampling, seed, self._base)

        return await self._scheduler.run(Lane.SAMPLE, work, draw)

    async def texts(
        self, prompts: Sequence[Ids], sampling: SamplingConfig, num_samples: int, seed: int
    ) -> list[list[str]]:
        """`num_samples` decoded answers per prompt, in the prompts' order."""

        async def one(members: Members) -> list[list[str]]:
            part, first = [prompts[index] for index in members], seed + members[0] * num_samples
            work = Work(num_samples, num_samples * sampling.max_tokens)
            call = self._scheduler.run
            return await call(Lane.PROBE, work, lambda engine: engine.texts(part, sampling, num_samples, first))

        return await _by_group(range(len(prompts)), one)

    async def score(self, prompts: Sequence[Ids], responses: Sequence[Ids]) -> list[Floats]:
        """log pi(y_t | prompt, y_<t), float32 [T] a row, in the rows' order."""

        async def one(members: Members) -> list[Floats]:
            asked, given = [prompts[index] for index in members], [responses[index] for index in members]
            work = Work(len(given), len(asked[0]) + sum(len(response) for response in given))
            return await self._scheduler.run(Lane.SCORE, work, lambda engine: engine.score(asked, given, self._base))

        return await _by_group([prompt.tobytes() for prompt in prompts], one)


async def _by_group(keys: Iterable[Hashable], one: Callable[[Members], Awaitable[list[T]]]) -> list[T]:
    """What `one` makes of the members of each group of equal keys, side by side, back in the order of the keys."""
    groups: dict[Hashable, Members] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    if len(groups) == 1:  # as where a group of rollouts is scored: without a task, which costs more than all else here
        return await one(*groups.values())
    parts = await asyncio.gather(*(one(members) for members in groups.values()))
    placed = {
        index: value
        for members, values in zip(groups.values(), parts, strict=True)
        for index, value in zip(members, values, strict=True)
    }
    return [placed[index] for index in range(len(placed))]
