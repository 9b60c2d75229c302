"""Several engines as one: a `Sampler` and a `Scorer` over their handles."""

import asyncio
import heapq
import itertools
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from evidence.records import Floats, Ids, RolloutRequest, Sample
from rollout.config import SamplingConfig

T = TypeVar("T")
Members = list[int]  # of one group: places in the caller's list
BATCHES = 2  # of sequences that an engine holds: one that it runs, and one to go on with as sequences end


@dataclass(frozen=True)
class Work:
    """A piece of work for one engine."""

    sequences: int
    tokens: int


class EnginePool:
    """Rows with one prompt go together, so that they share its prefill, to the engine with the fewest outstanding
    tokens. What is beyond the engines' room waits here, and not in the queue of an engine that may be slow: such an
    engine delays what it has begun and nothing else. Scores, which end a group, go before samples, which begin one;
    otherwise first come, first served.

    handles: of actors with the methods `sample`, `texts` and `score` of an engine.
    max_num_seqs: sequences that one engine runs at a time.
    options: keyword arguments of every call.
    """

    def __init__(self, handles: Sequence[Any], max_num_seqs: int, **options: Any) -> None:
        self._handles, self._room, self._options = list(handles), BATCHES * max_num_seqs, options
        self._tokens, self._sequences = [0] * len(self._handles), [0] * len(self._handles)  # outstanding, by engine
        self._waiting: list[tuple[bool, int, Work, asyncio.Future[int]]] = []  # a heap
        self._numbers = itertools.count()

    async def sample(self, requests: Sequence[RolloutRequest], sampling: SamplingConfig, seed: int) -> list[Sample]:
        """One response per request of a group, in their order, all from one engine."""
        work = Work(len(requests), len(requests) * sampling.max_tokens)
        return await self._on_lightest(work, "sample", list(requests), sampling, seed)

    async def texts(
        self, prompts: Sequence[Ids], sampling: SamplingConfig, num_samples: int, seed: int
    ) -> list[list[str]]:
        """`num_samples` decoded answers per prompt, in the prompts' order."""

        async def one(members: Members) -> list[list[str]]:
            part, first = [prompts[index] for index in members], seed + members[0] * num_samples
            work = Work(num_samples, num_samples * sampling.max_tokens)
            return await self._on_lightest(work, "texts", part, sampling, num_samples, first)

        return await _by_group(range(len(prompts)), one)

    async def score(self, prompts: Sequence[Ids], responses: Sequence[Ids]) -> list[Floats]:
        """log pi(y_t | prompt, y_<t), float32 [T] a row, in the rows' order."""

        async def one(members: Members) -> list[Floats]:
            asked, given = [prompts[index] for index in members], [responses[index] for index in members]
            work = Work(len(given), len(asked[0]) + sum(len(response) for response in given))
            return await self._on_lightest(work, "score", asked, given)

        return await _by_group([prompt.tobytes() for prompt in prompts], one)

    async def _on_lightest(self, work: Work, method: str, *arguments: Any) -> Any:
        place = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (method != "score", next(self._numbers), work, place))
        self._give_out()
        try:
            return await getattr(self._handles[await place], method).remote(*arguments, **self._options)
        finally:
            if not place.cancelled():  # an engine was found
                self._tokens[place.result()] -= work.tokens
                self._sequences[place.result()] -= work.sequences
                self._give_out()

    def _give_out(self) -> None:
        """Places what waits, as far as there is room. An engine that is not full takes a piece of any size."""
        while self._waiting:
            *_, work, place = self._waiting[0]
            if not place.cancelled():
                open_engines = [i for i, held in enumerate(self._sequences) if held < self._room]
                if not open_engines:
                    return
                lightest = min(open_engines, key=self._tokens.__getitem__)
                self._tokens[lightest] += work.tokens
                self._sequences[lightest] += work.sequences
                place.set_result(lightest)
            heapq.heappop(self._waiting)


async def _by_group(keys: Iterable[Hashable], one: Callable[[Members], Awaitable[list[T]]]) -> list[T]:
    """What `one` makes of the members of each group of equal keys, side by side, back in the order of the keys."""
    groups: dict[Hashable, Members] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    parts = await asyncio.gather(*(one(members) for members in groups.values()))
    placed = {
        index: value
        for members, values in zip(groups.values(), parts, strict=True)
        for index, value in zip(members, values, strict=True)
    }
    return [placed[index] for index in range(len(placed))]
