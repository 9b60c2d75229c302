"""The owner of the engines: it starts them, feeds them, hands them weights, proves what they hold, replaces those that
die or hang, and ends them.

    who wants a token -> EnginePool -> Scheduler -> EngineClient -> an actor's engine, or somebody's server
    who has weights --> tell, prove ------------------^
    Roster: which engine has which place, and whether it serves

It lives in the rollout service. Everyone else asks that service, and holds no engine.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.faults import FaultsConfig
from cluster.fleet.canary import CanaryText
from cluster.fleet.engines import OPENING, Maker
from cluster.fleet.roster import Roster
from cluster.fleet.scheduler import EnginePool
from evidence.records import Floats, Ids
from evidence.telemetry import Activity, EngineState
from rollout.config import EngineConfig
from rollout.waits import Deadlines

ENDING_S = 3.0  # for a process that was told to end
STOP_DEADLINE_S = 15.0  # for engines that may be hung: they are killed after it


class Fleet:
    """The engines of one run, by pool ("student", "teacher").

    makers: of the engine of each place of a pool. configs: the pools' settings. taking: pools that take weights from
    the learner. in_turn: engines start one after another, as on a GPU that they share, where vLLM takes what other
    processes allocate while it starts for its own.
    """

    def __init__(
        self,
        makers: Mapping[str, Sequence[Maker]],
        configs: Mapping[str, EngineConfig],
        faults: FaultsConfig,
        taking: Sequence[str] = ("student",),
        in_turn: bool = False,
    ) -> None:
        self.activity, self.deadlines, self._configs = Activity(), Deadlines(), configs
        self.roster = Roster(makers, configs, faults, taking, in_turn, self.activity, self.deadlines)

    def pool(self, name: str) -> EnginePool:
        """The engines of a pool as one; a pool without engines of its own is the student's, without their adapter."""
        if self.roster.seats[name]:
            return EnginePool(self.roster.schedulers[name])
        return EnginePool(self.roster.schedulers["student"], base=True)

    async def states(self, seconds: float) -> dict[str, EngineState]:
        """Each engine by its name; one that does not answer within `seconds`, fails to, or has not started, is not
        `up`."""
        seats = self.roster.everyone()
        asked = [asyncio.create_task(seat.engine.stats()) for seat in seats]
        if asked:
            await asyncio.wait(asked, timeout=seconds)
        states = {}
        for seat, task in zip(seats, asked, strict=True):
            is_up = seat.stands and task.done() and task.exception() is None
            load = self.roster.schedulers[seat.pool].load_of(seat.engine)
            stats = task.result() if is_up else {}
            states[seat.name] = EngineState(seat.pool, is_up, load.tokens, load.sequences, stats)
            task.cancel()
        return states

    def waiting(self) -> dict[str, int]:
        """Pieces of work without an engine, by pool."""
        return {pool: scheduler.num_waiting for pool, scheduler in self.roster.schedulers.items()}

    async def tell(self, pool: str, verb: str, arguments: Sequence[Any], seconds: float) -> None:
        """A verb of the weight hand-off to every engine that takes part; see `EngineClient.tell`."""
        size = self._configs[pool].tensor_parallel_size
        told = {
            seat: seat.engine.tell(verb, *(_own(argument, place * size) for argument in arguments))
            for place, seat in enumerate(self.roster.enlisted(pool))
        }
        await self.roster.each(verb, told, seconds, spares=verb == OPENING)

    async def sleep(self, seconds: float) -> None:
        """Every engine gives back its GPU's memory, also one that was amid its start."""
        clock = asyncio.get_running_loop().time
        end = clock() + seconds
        await self.roster.fall_asleep(seconds / 2)
        await self._all("engines that fall asleep", "sleep", round(end - clock(), 1))

    async def wake_up(self, seconds: float) -> None:
        """Every engine takes its memory again."""
        await self._all("engines that wake up", "wake_up", seconds)
        self.roster.wake_up()
        if self.roster.reference is not None:
            await self.prove_teacher(*self.roster.reference, seconds)

    async def _all(self, what: str, verb: str, seconds: float) -> None:
        standing = [seat for seat in self.roster.everyone() if seat.stands]
        await self.roster.each(what, {seat: seat.engine.tell(verb) for seat in standing}, seconds)

    async def prove_weights(self, pool: str, version: int, digest: str, seconds: float) -> None:
        """RuntimeError names an engine of `pool` that does not hold `version` with the digest of what was sent."""
        what = f"weight push of version {version}"
        asked = {seat: seat.engine.weight_state() for seat in self.roster.enlisted(pool)}
        for seat, found in (await self.roster.each(what, asked, seconds)).items():
            if found != (version, digest):
                raise RuntimeError(
                    f"{what}: {seat.name} holds version {found[0]} with digest {found[1]}, expected version {version} "
                    f"with digest {digest}"
                )

    async def canary(self, pool: str, version: int, text: CanaryText, seconds: float) -> dict[str, float]:
        """Scores a text on every engine of `pool`, which a digest cannot replace: it does not see what an engine made
        of the weights that it received.

        Returns:
            the mean |engine - learner| of each engine by its name, nats a token.
        """
        seats = self.roster.enlisted(pool)
        asked = {seat: seat.engine.check(text.prompt_ids, text.response_ids, False) for seat in seats}
        found = await self.roster.each(f"canary at version {version}", asked, seconds)
        return {seat.name: text.difference(one) for seat, one in found.items()}

    async def teacher_scores(self, prompt_ids: Ids, response_ids: Ids) -> Floats:
        """What the frozen teacher says of a text, float32 [T]."""
        (found,) = await self.pool("teacher").score([prompt_ids], [response_ids])
        return found

    async def prove_teacher(self, text: CanaryText, tolerance: float, seconds: float) -> None:
        """Every engine of the frozen teacher scores `text` as it did at first; one that does not is replaced, and a
        successor serves only then."""
        what, by_teachers = "check of the frozen teacher", bool(self.roster.seats["teacher"])
        self.roster.reference = text, tolerance
        seats = [seat for seat in self.roster.seats["teacher" if by_teachers else "student"] if seat.stands]
        engines = {seat: seat.engine for seat in seats}
        asked = {
            seat: engine.check(text.prompt_ids, text.response_ids, not by_teachers) for seat, engine in engines.items()
        }
        for seat, found in (await self.roster.each(what, asked, seconds)).items():
            try:
                text.require(what, seat.name, "the first one", found, tolerance)
            except RuntimeError as error:
                self.roster.lose(seat, engines[seat], error)
        self.roster.require_hope()

    async def stop(self) -> None:
        """Ends every engine. They first end their own children and give back the shared memory between them."""
        self.roster.stop()
        everyone = [seat.engine for seat in self.roster.everyone()]
        ending = [asyncio.create_task(engine.stop()) for engine in everyone]
        if ending:
            await asyncio.wait(ending, timeout=STOP_DEADLINE_S)
        for task in ending:
            task.cancel()
        await asyncio.gather(*(asyncio.to_thread(engine.kill, ENDING_S) for engine in everyone))


def _own(argument: Any, offset: int) -> Any:
    """What one engine is told: its workers meet the learner at ranks of their own, where vLLM's trainer engines, which
    know of one engine, give each the same."""
    if isinstance(argument, dict) and "rank_offset" in argument:
        return argument | {"rank_offset": argument["rank_offset"] + offset}
    return argument
