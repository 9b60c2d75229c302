"""The scheduler under any order of work that comes, ends, fails and is given up, and of engines that die, hang and are
replaced, on a clock of its own."""

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cluster.fleet.calls import Died
from cluster.fleet.scheduler import BATCHES, Lane, Scheduler, Work
from tests.virtual_time import VirtualTimeLoop

BATCH = 2  # sequences
SETTLED = 8  # turns of the loop after which nothing moves by itself


@dataclass(eq=False)
class Piece:
    """A piece of work as the test sees it."""

    number: int
    lane: Lane
    work: Work
    end: asyncio.Event = field(default_factory=asyncio.Event)
    fails: bool = False
    dies: bool = False  # its engine, in the call
    calls: int = 0
    lost: int = 0  # calls that an engine took with it
    engine: Any = None  # whose call is under way
    task: "asyncio.Task[int] | None" = None


class SchedulerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner(loop_factory=VirtualTimeLoop)
        self.engines: list[Any] = [SimpleNamespace(name="engine 0"), SimpleNamespace(name="engine 1")]
        self.count = len(self.engines)
        self.losing = False  # what an engine took with it is on its way back to its place
        self.scheduler = Scheduler(self.engines, BATCH, on_death=self.bury)
        self.pieces: list[Piece] = []

    def running(self) -> list[Piece]:
        return [piece for piece in self.pieces if piece.engine is not None]

    def waiting(self) -> list[Piece]:
        return [piece for piece in self.pieces if not piece.engine and piece.task and not piece.task.done()]

    def held(self, engine: Any) -> int:
        return sum(piece.work.sequences for piece in self.running() if piece.engine == engine)

    def bury(self, engine: Any, death: Died) -> None:
        self.forget(engine)
        self.scheduler.lose(engine)

    def forget(self, engine: Any) -> None:
        if engine in self.engines:
            self.losing = True
            self.engines.remove(engine)
            for piece in self.running():
                piece.lost += piece.engine == engine

    async def call(self, piece: Piece, engine: Any) -> int:
        piece.calls += 1
        assert self.held(engine) < BATCHES * BATCH, "an engine that is full got work"
        before = [other for other in self.waiting() if (other.lane, other.number) < (piece.lane, piece.number)]
        first = all(other.task and other.task.cancelling() for other in before)
        assert first or self.losing, "work that should wait went first"
        piece.engine = engine
        try:
            await piece.end.wait()
        finally:
            piece.engine = None
        if piece.dies:
            piece.dies = False
            piece.end.clear()
            piece.lost += engine in self.engines  # otherwise it was counted as the engine was lost
            raise Died("engine died")
        if piece.fails:
            raise RuntimeError("engine died")
        return piece.number

    def turn(self, turns: int = SETTLED) -> None:
        async def pause() -> None:
            for _ in range(turns):
                await asyncio.sleep(0)

        self.runner.run(pause())
        self.losing = False

    @rule(lane=st.sampled_from(Lane), sequences=st.integers(1, 2 * BATCH), tokens=st.integers(1, 9))
    def submit(self, lane: Lane, sequences: int, tokens: int) -> None:
        piece = Piece(len(self.pieces), lane, Work(sequences, tokens))
        self.pieces.append(piece)
        with_room = [load for load in self.scheduler.loads if load.sequences < BATCHES * BATCH]
        lightest = min(with_room, key=lambda load: load.tokens).engine if with_room else None  # the first of equal ones

        async def begin() -> None:
            work = self.scheduler.run(lane, piece.work, lambda engine: self.call(piece, engine))
            piece.task = asyncio.create_task(work)

        self.runner.run(begin())
        self.turn()
        assert piece.engine is lightest

    @precondition(lambda self: self.running())
    @rule(data=st.data(), fails=st.booleans())
    def end(self, data: st.DataObject, fails: bool) -> None:
        piece = data.draw(st.sampled_from(self.running()))
        piece.fails = fails
        piece.end.set()
        self.turn()

    @precondition(lambda self: self.running() or self.waiting())
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        task = data.draw(st.sampled_from([*self.running(), *self.waiting()])).task
        assert task is not None
        task.cancel()
        self.turn()

    @precondition(lambda self: self.running() and self.waiting())
    @rule(data=st.data(), turns=st.integers(0, 4))
    def cancel_what_may_just_have_got_its_room(self, data: st.DataObject, turns: int) -> None:
        ending, task = (data.draw(st.sampled_from(some)) for some in (self.running(), self.waiting()))
        ending.end.set()
        self.turn(turns)
        assert task.task is not None
        task.task.cancel()
        self.turn()

    @precondition(lambda self: self.running())
    @rule(data=st.data())
    def die_in_a_call(self, data: st.DataObject) -> None:
        piece = data.draw(st.sampled_from(self.running()))
        piece.dies = True
        piece.end.set()
        self.turn()

    @precondition(lambda self: self.engines)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        """One that does not answer: nothing of what it has begun comes back by itself."""
        engine = data.draw(st.sampled_from(self.engines))
        self.forget(engine)

        async def lose() -> None:
            self.scheduler.lose(engine)

        self.runner.run(lose())
        self.turn()

    @precondition(lambda self: len(self.engines) < 3)
    @rule()
    def open(self) -> None:
        engine: Any = SimpleNamespace(name=f"engine {self.count}")
        self.count += 1
        self.engines.append(engine)

        async def begin() -> None:
            self.scheduler.open(engine)

        self.runner.run(begin())
        self.turn()

    @invariant()
    def the_books_are_right_and_no_room_is_left_unused(self) -> None:
        assert [load.engine for load in self.scheduler.loads] == self.engines
        assert all(piece.engine in self.engines for piece in self.running())
        for load in self.scheduler.loads:
            mine = [piece.work for piece in self.running() if piece.engine == load.engine]
            assert load.sequences == sum(work.sequences for work in mine)
            assert load.tokens == sum(work.tokens for work in mine)
        assert self.scheduler.num_waiting == len(self.waiting())
        if self.waiting():
            assert all(self.held(engine) >= BATCHES * BATCH for engine in self.engines)

    @invariant()
    def each_piece_is_done_once(self) -> None:
        for piece in self.pieces:
            assert piece.calls <= 1 + piece.lost
            if piece.task and piece.task.done() and not piece.task.cancelled():
                failed = piece.task.exception() is not None
                assert failed == piece.fails and (failed or piece.task.result() == piece.number)

    def teardown(self) -> None:
        if not self.engines:
            self.open()
        while self.running():
            self.running()[0].end.set()
            self.turn()
        assert all(piece.task and piece.task.done() for piece in self.pieces)
        assert [(load.sequences, load.tokens) for load in self.scheduler.loads] == [(0, 0)] * len(self.engines)
        self.runner.close()


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
