"""The owner of the engines: it starts them, feeds them, hands them weights, proves what they hold, and ends them.

    who wants a token -> EnginePool -> Scheduler -> EngineClient -> an actor's engine, or somebody's server
    who has weights --> tell, prove ------------------^

It lives in the rollout service. Everyone else asks that service, and holds no engine.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.fleet.calls import all_within, within
from cluster.fleet.engines import EngineClient
from cluster.fleet.scheduler import EnginePool, Scheduler
from evidence.records import Floats, Ids
from evidence.telemetry import Activity, EngineState
from rollout.config import EngineConfig

STOP_DEADLINE_S = 15.0  # for engines that may be hung: they are killed after it
GRACE_S = 10.0  # by which a wait for others that wait is longer than theirs, so that theirs gives the name


@dataclass(frozen=True, eq=False)
class CanaryText:
    """A fixed text, and the learner's own log-probs of its response, float32 [T], under the weights in question."""

    prompt_ids: Ids
    response_ids: Ids
    expected: Floats


class Fleet:
    """The engines of one run, by pool ("student", "teacher").

    configs: the pools' settings. in_turn: engines start one after another, as on a GPU that they share, where vLLM
    takes what other processes allocate while it starts for its own.
    """

    def __init__(
        self,
        engines: Mapping[str, Sequence[EngineClient]],
        configs: Mapping[str, EngineConfig],
        in_turn: bool = False,
    ) -> None:
        self.engines, self.configs, self._in_turn = {pool: tuple(engines[pool]) for pool in engines}, configs, in_turn
        self.activity = Activity()
        self._schedulers = {
            pool: Scheduler(engines[pool], configs[pool].max_num_seqs, self.activity) for pool in engines
        }

    def pool(self, name: str) -> EnginePool:
        """The engines of a pool as one; a pool without engines of its own is the student's, without their adapter."""
        if self.engines[name]:
            return EnginePool(self._schedulers[name])
        return EnginePool(self._schedulers["student"], base=True)

    async def start(self) -> dict[str, str]:
        """The address of each engine's host, by the engine's name.

        Raises:
            TimeoutError, RuntimeError: name the engine that did not start.
        """
        turns = asyncio.Semaphore(1 if self._in_turn else len(self._everyone()))
        starting = {
            engine.name: _start(turns, self.configs[pool].start_deadline_s, engine)
            for pool, engines in self.engines.items()
            for engine in engines
        }
        hosts = await all_within(self.start_deadline_s() + GRACE_S, "start of the engines", starting)
        return dict(zip(starting, hosts, strict=True))

    def start_deadline_s(self) -> float:
        """For all of them."""
        each = [self.configs[pool].start_deadline_s for pool, engines in self.engines.items() for _ in engines]
        return sum(each) if self._in_turn else max(each)

    async def states(self, seconds: float) -> dict[str, EngineState]:
        """Each engine by its name; one that does not answer within `seconds`, or fails to, is not `up`."""
        loads = [(pool, load) for pool, scheduler in self._schedulers.items() for load in scheduler.loads]
        asked = [asyncio.create_task(load.engine.stats()) for _, load in loads]
        if asked:
            await asyncio.wait(asked, timeout=seconds)
        states = {}
        for (pool, load), task in zip(loads, asked, strict=True):
            is_up = task.done() and task.exception() is None
            stats = task.result() if is_up else {}
            states[load.engine.name] = EngineState(pool, is_up, load.tokens, load.sequences, stats)
            task.cancel()
        return states

    def waiting(self) -> dict[str, int]:
        """Pieces of work without an engine, by pool."""
        return {pool: scheduler.num_waiting for pool, scheduler in self._schedulers.items()}

    async def tell(self, pool: str, verb: str, arguments: Sequence[Any], seconds: float) -> None:
        """A verb of the weight hand-off to every engine of a pool; see `EngineClient.tell`."""
        size = self.configs[pool].tensor_parallel_size
        told = {
            engine.name: engine.tell(verb, *(_own(argument, place * size) for argument in arguments))
            for place, engine in enumerate(self.engines[pool])
        }
        await all_within(seconds, verb, told)

    async def sleep(self, seconds: float) -> None:
        """Every engine gives back its GPU's memory."""
        await self._all("engines that fall asleep", "sleep", seconds)

    async def wake_up(self, seconds: float) -> None:
        """Every engine takes its memory again."""
        await self._all("engines that wake up", "wake_up", seconds)

    async def _all(self, what: str, verb: str, seconds: float) -> None:
        await all_within(seconds, what, {engine.name: engine.tell(verb) for engine in self._everyone()})

    def _everyone(self) -> list[EngineClient]:
        return [engine for engines in self.engines.values() for engine in engines]

    async def prove_weights(self, pool: str, version: int, digest: str, seconds: float) -> None:
        """RuntimeError names an engine of `pool` that does not hold `version` with the digest of what was sent."""
        what = f"weight push of version {version}"
        asked = {engine.name: engine.weight_state() for engine in self.engines[pool]}
        for name, found in zip(asked, await all_within(seconds, what, asked), strict=True):
            if found != (version, digest):
                raise RuntimeError(
                    f"{what}: {name} holds version {found[0]} with digest {found[1]}, expected version {version} with "
                    f"digest {digest}"
                )

    async def prove_canary(self, pool: str, version: int, text: CanaryText, tolerance: float, seconds: float) -> float:
        """Scores a text on every engine of `pool`, which a digest cannot replace: it does not see what an engine made
        of the weights that it received.

        Returns:
            the largest mean |engine - learner| over the engines, nats a token.

        Raises:
            RuntimeError: names an engine that differs by more than `tolerance`.
        """
        what = f"canary at version {version}"
        asked = {engine.name: _score(engine, text) for engine in self.engines[pool]}
        differences = [float(np.abs(found - text.expected).mean()) for found in await all_within(seconds, what, asked)]
        for name, difference in zip(asked, differences, strict=True):
            if not difference <= tolerance:
                raise RuntimeError(
                    f"{what}: {name} differs from the learner by {difference:.3f} nats a token on average, expected "
                    f"at most {tolerance:g}: its weights are not the learner's"
                )
        return max(differences)

    async def stop(self) -> None:
        """Ends every engine. They first end their own children and give back the shared memory between them."""
        everyone = self._everyone()
        ending = [asyncio.create_task(engine.stop()) for engine in everyone]
        if ending:
            await asyncio.wait(ending, timeout=STOP_DEADLINE_S)
        for engine, task in zip(everyone, ending, strict=True):
            task.cancel()
            engine.kill()


async def _start(turns: asyncio.Semaphore, seconds: float, engine: EngineClient) -> str:
    async with turns:
        return await within(seconds, f"start of {engine.name}", engine.start())


def _own(argument: Any, offset: int) -> Any:
    """What one engine is told: its workers meet the learner at ranks of their own, where vLLM's trainer engines, which
    know of one engine, give each the same."""
    if isinstance(argument, dict) and "rank_offset" in argument:
        return argument | {"rank_offset": argument["rank_offset"] + offset}
    return argument


async def _score(engine: EngineClient, text: CanaryText) -> Floats:
    (found,) = await engine.score([text.prompt_ids], [text.response_ids], False)
    return found
