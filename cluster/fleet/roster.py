"""Who has which place: engines are started, watched, and replaced when they die or hang."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ray.exceptions import RayTaskError

from cluster.errors import cause_of
from cluster.faults import FaultsConfig, Restarts
from cluster.fleet.calls import Died, all_within, within
from cluster.fleet.canary import CanaryText
from cluster.fleet.engines import EngineClient, Maker
from cluster.fleet.scheduler import Scheduler
from cluster.fleet.seats import Seat, failure_of
from evidence.telemetry import Activity
from rollout.config import EngineConfig
from rollout.waits import Deadlines

T = TypeVar("T")
GRACE_S = 10.0  # by which a wait for others that wait is longer than theirs, so that theirs gives the name
PING_S = 2.0  # between two questions to an engine whether it still answers


@dataclass(frozen=True)
class News:
    """What the driver hears of the fleet. pools: with an engine that waits for weights. lines: since the last time, one
    for each engine that was lost, and one for each whose successor serves."""

    pools: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()


class Roster:
    """The seats of every pool, and the schedulers that give the engines in them work.

    configs: the pools' settings. taking: pools that take weights from the learner. in_turn: engines start one after
    another. activity: when each engine did what. deadlines: of the engines' work.
    """

    def __init__(
        self,
        makers: Mapping[str, Sequence[Maker]],
        configs: Mapping[str, EngineConfig],
        faults: FaultsConfig,
        taking: Sequence[str],
        in_turn: bool,
        activity: Activity,
        deadlines: Deadlines,
    ) -> None:
        self._configs, self._faults, self._taking, self._in_turn = configs, faults, taking, in_turn
        self._activity, self._deadlines = activity, deadlines
        self.seats = {pool: [Seat(pool, make, Restarts(faults)) for make in makers[pool]] for pool in makers}
        self.schedulers = {pool: Scheduler([], configs[pool].max_num_seqs, activity, self._on_death) for pool in makers}
        self.reference: tuple[CanaryText, float] | None = None  # of a frozen teacher, and the tolerance
        self._opened: dict[str, list[EngineClient]] = {}  # by pool: those that the learner's transport is open to
        self._failure: Exception | None = None
        self._changed, self._awake = asyncio.Event(), asyncio.Event()
        self._awake.set()
        self._lines, self._tasks = list[str](), set[asyncio.Task[None]]()
        self._starting: set[Seat] = set()  # whose successor does
        self._turns = asyncio.Semaphore(1 if in_turn else len(self.everyone()))

    def everyone(self) -> list[Seat]:
        return [seat for seats in self.seats.values() for seat in seats]

    def enlisted(self, pool: str) -> list[Seat]:
        """Those that take part in pushes."""
        return [seat for seat in self.seats[pool] if seat.enlisted]

    # Start

    async def start(self) -> dict[str, str]:
        """The address of each engine's host, by the engine's name.

        Raises:
            TimeoutError, RuntimeError: name the engine that did not start.
        """
        starting = {seat.name: self._start_in_turn(seat) for seat in self.everyone()}
        hosts = await all_within(self.start_deadline_s() + GRACE_S, "start of the engines", starting)
        for seat in self.everyone():
            seat.stands = True
            if seat.pool != "student":  # teachers begin with the weights that they are to have
                self._admit(seat)
        self._keep(self._watch())
        return dict(zip(starting, hosts, strict=True))

    async def _start_in_turn(self, seat: Seat) -> str:
        async with self._turns:
            return await self._start(seat)

    async def _start(self, seat: Seat) -> str:
        with self._activity.piece(seat.name, "start"):
            seconds = self._configs[seat.pool].start_deadline_s
            return await within(seconds, f"start of {seat.name}", seat.call(seat.engine.start()))

    def start_deadline_s(self) -> float:
        """For all of them."""
        each = [self._configs[seat.pool].start_deadline_s for seat in self.everyone()]
        return sum(each) if self._in_turn else max(each)

    # Loss

    async def _watch(self) -> None:
        """Finds the engines that die or hang while nobody waits for them. What has a deadline of its own is left."""
        while True:
            await asyncio.sleep(PING_S)
            for seat in self.everyone():
                if seat.stands and not seat.asked:
                    self._keep(self._ping(seat, seat.engine))
                elif not seat.pinged:
                    seat.get_on()

    async def _ping(self, seat: Seat, engine: EngineClient) -> None:
        try:
            await seat.require_life(self._faults.silent_s, lambda: self.schedulers[seat.pool].load_of(engine).sequences)
        except (RuntimeError, TimeoutError, RayTaskError) as error:  # the last is whatever the engine's process raised
            self.lose(seat, engine, error)

    def _on_death(self, engine: EngineClient, death: Died) -> None:
        for seat in self.everyone():
            self.lose(seat, engine, death)
        self.require_hope()

    def lose(self, seat: Seat, engine: EngineClient, error: Exception) -> None:
        """Replaces the engine of a seat, unless it was; where it was replaced too often, all ends with `error`."""
        if not seat.has(engine) or self._failure is not None:
            return
        self.schedulers[seat.pool].lose(engine)
        if not seat.restarts.allow(asyncio.get_running_loop().time()):
            self._fail(error)
            return
        said = str(cause_of(error))
        print(said, flush=True)
        self._lines.append(f"{said.splitlines()[0]}; it is replaced")
        seat.lose()
        self._pace()
        self._keep(self._replace(seat))
        self._changed.set()

    def _fail(self, error: Exception) -> None:
        head, newline, rest = str(cause_of(error)).partition("\n")
        faults = self._faults
        if faults.max_restarts:
            head += f" (after {faults.max_restarts} restarts within {faults.restart_window_s:g} s)"
        kind = TimeoutError if isinstance(error, TimeoutError) else RuntimeError
        self._failure = kind(f"{head}{newline}{rest}")
        for scheduler in self.schedulers.values():
            scheduler.fail(self._failure)
        self._changed.set()

    def require_hope(self) -> None:
        """Raises what ended the fleet, if anything did."""
        if self._failure is not None:
            raise self._failure

    async def _replace(self, seat: Seat) -> None:
        """Puts a successor in the engine's place, which serves at once only where it takes no weights."""
        async with self._turns:
            await self._awake.wait()  # while the learner has a shared GPU's memory none would find any
            engine = seat.renew()
            self._starting.add(seat)
            try:
                await self._start(seat)
                if seat.pool not in self._taking:
                    await self._require_reference(seat)
            except (RuntimeError, TimeoutError) as error:
                self.lose(seat, engine, error)
                return
            finally:
                self._starting.discard(seat)
                self._changed.set()
        if not seat.has(engine):  # the learner needed its memory at just that moment
            return
        seat.stands = True
        if seat.pool not in self._taking:
            self._admit(seat)
        self._pace()
        self._changed.set()

    async def _require_reference(self, seat: Seat) -> None:
        if self.reference is not None:
            text, tolerance = self.reference
            seconds, what = self._configs[seat.pool].start_deadline_s, f"start of {seat.name}"
            found = await within(seconds, what, seat.call(seat.engine.check(text.prompt_ids, text.response_ids, False)))
            text.require(what, seat.name, "the one before it", found, tolerance)

    def _admit(self, seat: Seat) -> None:
        if (seconds := seat.serve()) is not None:
            self._lines.append(f"{seat.name} serves again, {seconds:.1f} s after it was lost")
            self._changed.set()
        self.schedulers[seat.pool].open(seat.engine)
        self._pace()

    def _pace(self) -> None:
        """The deadlines of work wait while an engine starts anew, or none of a pool serves; then they begin anew."""
        serves = all(any(seat.serves for seat in seats) for seats in self.seats.values() if seats)
        self._deadlines.pause(not (serves and all(seat.stands for seat in self.everyone())))

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._settle)

    def _settle(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception):  # no fault of an engine's
            self._fail(error)

    # What the learner's next push finds

    async def news(self, seconds: float, seen: int, wanted: Mapping[str, int]) -> News:
        """As soon as there is any, within `seconds`: the pools where fewer serve than `wanted`, and the lines after the
        first `seen`."""

        def found() -> News | None:
            waiting = {seat.pool for seat in self.everyone() if seat.stands and not seat.serves}
            serving = Counter(seat.pool for seat in self.everyone() if seat.serves)
            short = {pool for pool, count in wanted.items() if serving[pool] < count}
            news = News(tuple(sorted(waiting & short & set(self._taking))), tuple(self._lines[seen:]))
            return news if news.pools or news.lines else None

        return await self._until(found, seconds) or News()

    async def enlist(self, pool: str) -> int:
        """Who stands takes part in the pushes that follow; waits for one as long as any is replaced.

        Returns:
            the number of their workers where the learner's transport is not open to just them, otherwise 0.
        """
        standing = await self._until(lambda: [seat for seat in self.seats[pool] if seat.stands]) or []
        for seat in standing:
            seat.enlisted = True
        engines = [seat.engine for seat in standing]
        if engines == self._opened.get(pool):
            return 0
        self._opened[pool] = engines
        return len(engines) * self._configs[pool].tensor_parallel_size

    def admit(self, pool: str) -> int:
        """Who took part in the last push serves: it is proven. Returns how many do."""
        for seat in self.enlisted(pool):
            if not seat.serves:
                self._admit(seat)
        return len(self.enlisted(pool))

    async def _until(self, found: Callable[[], T], seconds: float | None = None) -> T | None:
        """What is found as soon as there is something, within `seconds` if there are any."""
        try:
            async with asyncio.timeout(seconds):
                while self._failure is None and not found():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return None
        self.require_hope()
        return found()

    # Questions to several at once

    async def fall_asleep(self, seconds: float) -> None:
        """No engine starts until `wake_up`. Those that do already have so long; then they are lost, and their
        successors wait."""
        self._awake.clear()
        await self._until(lambda: not self._starting, seconds)
        for seat in list(self._starting):
            late = f"start of {seat.name}: not done within {seconds:g} s, and the learner needs its memory"
            self.lose(seat, seat.engine, TimeoutError(late))

    def wake_up(self) -> None:
        self._awake.set()

    async def each(
        self, what: str, asked: Mapping[Seat, Coroutine[Any, Any, T]], seconds: float, spares: bool = False
    ) -> dict[Seat, T]:
        """The answers of those that are not lost: who dies or is late is, and beside one that is also who fails, since
        what connected them is broken; not with `spares`, where nothing did yet. Who fails alone raises."""
        engines = {seat: seat.engine for seat in asked}
        tasks = {seat: seat.call(work) for seat, work in asked.items()}
        if tasks:
            await asyncio.wait(tasks.values(), timeout=seconds)
        late = ", ".join(seat.name for seat, task in tasks.items() if not task.done())
        silent = TimeoutError(f"{what}: no answer from {late} (of {len(tasks)}) within {seconds:g} s")
        failures = {seat: failure_of(task, silent) for seat, task in tasks.items()}
        others = [error for error in failures.values() if not isinstance(error, (Died, TimeoutError, type(None)))]
        if others and len(others) == sum(error is not None for error in failures.values()):
            raise others[0]
        for seat, error in failures.items():
            if error is not None and not (spares and error in others):
                self.lose(seat, engines[seat], error)
        self.require_hope()
        return {seat: task.result() for seat, task in tasks.items() if failures[seat] is None}

    def stop(self) -> None:
        """Nothing is watched or replaced any more."""
        for task in self._tasks:
            task.cancel()
