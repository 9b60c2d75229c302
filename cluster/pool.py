"""Several engines as one: a `Sampler` and a `Scorer` over their handles."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from typing import Any, TypeVar

from evidence.records import Floats, Ids, RolloutRequest, Sample
from rollout.config import SamplingConfig

T = TypeVar("T")
Members = list[int]  # of one group: places in the caller's list


class EnginePool:
    """Rows with one prompt go together, so that they share its prefill, to the engine with the fewest outstanding
    tokens.

    handles: of actors with the methods `sample`, `texts` and `score` of an engine.
    """

    def __init__(self, handles: Sequence[Any]) -> None:
        self._handles = list(handles)
        self._outstanding = [0] * len(self._handles)

    async def sample(self, requests: Sequence[RolloutRequest], sampling: SamplingConfig, seed: int) -> list[Sample]:
        """One response per request of a group, in their order, all from one engine."""
        tokens = len(requests) * sampling.max_tokens
        return await self._on_lightest("sample", tokens, list(requests), sampling, seed)

    async def texts(
        self, prompts: Sequence[Ids], sampling: SamplingConfig, num_samples: int, seed: int
    ) -> list[list[str]]:
        """`num_samples` decoded answers per prompt, in the prompts' order."""

        async def one(members: Members) -> list[list[str]]:
            part, first = [prompts[index] for index in members], seed + members[0] * num_samples
            tokens = len(part) * num_samples * sampling.max_tokens
            return await self._on_lightest("texts", tokens, part, sampling, num_samples, first)

        return await _by_group(range(len(prompts)), one)

    async def score(self, prompts: Sequence[Ids], responses: Sequence[Ids]) -> list[Floats]:
        """log pi(y_t | prompt, y_<t), float32 [T] a row, in the rows' order."""

        async def one(members: Members) -> list[Floats]:
            asked, given = [prompts[index] for index in members], [responses[index] for index in members]
            tokens = len(asked[0]) + sum(len(response) for response in given)
            return await self._on_lightest("score", tokens, asked, given)

        return await _by_group([prompt.tobytes() for prompt in prompts], one)

    async def _on_lightest(self, method: str, tokens: int, *arguments: Any) -> Any:
        lightest = self._outstanding.index(min(self._outstanding))
        self._outstanding[lightest] += tokens
        try:
            return await getattr(self._handles[lightest], method).remote(*arguments)
        finally:
            self._outstanding[lightest] -= tokens


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
