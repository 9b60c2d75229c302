"""The observer of a run: a task in the driver that asks the services every few seconds, and feeds what shows a run.

    services --ask, with a deadline--> Observer --Batch--> Feeder (a thread each) --> files, page, Ray, trackers
    the loop's records ----heard------^

The loop never waits for it, but at its end for a last answer. A question that hangs or raises is a sample that says so;
a sink that hangs holds up its own thread, and one that raises is reported once and dropped.
"""

import asyncio
import queue
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Protocol

from cluster.errors import Preempted
from cluster.run.record import ProbeRecord, StepRecord
from evidence.telemetry import Activity, Sample, Span

CLOSE_S = 10.0  # for what the sinks have still to write when a run ends
BACKLOG = 1000  # batches that wait for a sink; a sink that is slower loses what is beyond, but for the run's end

# How a run ended: at its last step, since it was asked to, by a failure, or by one after which its services start again
FINISHED, STOPPED, FAILED, RESTARTING = "finished", "stopped", "failed", "restarting"
STARTING = "starting"  # it has not begun: no observer says so

Answer = tuple[Sample, list[Span]]


@dataclass(frozen=True)
class Batch:
    """What is new since the last one, in order."""

    time: float
    samples: tuple[Sample, ...] = ()
    spans: tuple[Span, ...] = ()
    steps: tuple[StepRecord, ...] = ()
    probes: tuple[ProbeRecord, ...] = ()
    ended: str = ""  # how the run ended: finished, stopped, failed, restarting; empty while it lasts


class Sink(Protocol):
    """Something that shows or keeps a run. Called from a thread of its own, one batch after another.

    name: for messages, such as "page".
    """

    name: str

    def write(self, batch: Batch) -> None:
        """OSError, ValueError or RuntimeError when it cannot; it is not called again."""


class Feeder:
    """A sink's thread. It is a daemon: a sink that hangs cannot keep the process."""

    def __init__(self, sink: Sink, say: Callable[[str], None]) -> None:
        self._sink, self._say, self.name = sink, say, sink.name
        self._waiting: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._has_lost = False
        self._thread = threading.Thread(target=self._run, name=f"observe-{sink.name}", daemon=True)
        self._thread.start()

    def put(self, batch: Batch | None) -> None:
        """Never waits. None: there is nothing after it. How a run ended arrives however far behind the sink is."""
        if not self._thread.is_alive():
            return
        if batch is None or batch.ended or self._waiting.qsize() < BACKLOG:
            self._waiting.put(batch)
        elif not self._has_lost:
            self._say(f"observe: {self.name}: too far behind the run; what is new until it goes on is lost there")
            self._has_lost = True

    def join(self, seconds: float) -> bool:
        """Waits for the end of what was put, for at most so long; whether it came."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        with ExitStack() as ending:
            ending.push(self._end)
            while (batch := self._waiting.get()) is not None:
                self._sink.write(batch)

    def _end(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        """Says what ended the sink, if anything did. What a sink does not raise by its contract is our own mistake:
        the traceback follows."""
        expected = isinstance(error, (OSError, ValueError, RuntimeError))
        if error is not None:
            words = str(error) if expected else f"{type(error).__name__}: {error}"
            self._say(f"observe: {self._sink.name}: {words}; the run goes on without it")
        return expected


@dataclass
class _New:
    samples: list[Sample] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    steps: list[StepRecord] = field(default_factory=list)
    probes: list[ProbeRecord] = field(default_factory=list)


class Observer:
    """Asks, and feeds the sinks, within `async with`.

    ask: the services' answer, given how many seconds an engine has. activity: what the driver does. ending: how a run
    ended that ended with an error.
    """

    def __init__(
        self,
        ask: Callable[[float], Awaitable[Answer]],
        activity: Activity,
        sinks: Sequence[Sink],
        every_s: float,
        say: Callable[[str], None] = print,
        ending: Callable[[BaseException], str] = lambda _: FAILED,
    ) -> None:
        self._ask, self._activity, self._every_s, self._say = ask, activity, every_s, say
        self._ending = ending
        self._feeders = [Feeder(sink, say) for sink in sinks]
        self._new, self._heard = _New(), asyncio.Event()
        self._silent, self._is_over = False, False

    def step(self, record: StepRecord) -> None:
        """A step is done; it is shown at once."""
        self._new.steps.append(record)
        self._heard.set()

    def probe(self, record: ProbeRecord) -> None:
        """A probe is done; it is shown at once."""
        self._new.probes.append(record)
        self._heard.set()

    async def __aenter__(self) -> "Observer":
        self._task = asyncio.create_task(self._rounds())
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, Preempted):
            self._is_over = True  # the services stand, and are asked for what came since the last question
            self._heard.set()
        else:
            self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled() and (own := self._task.exception()) is not None:
            self._say(f"observe: {own!r}; nothing was sampled after it")
        self._feed(FINISHED if error is None else self._ending(error))
        for feeder in self._feeders:
            feeder.put(None)
        end = time.monotonic() + CLOSE_S
        for feeder in self._feeders:
            if not feeder.join(max(0.0, end - time.monotonic())):
                self._say(
                    f"observe: {feeder.name}: not done {CLOSE_S:g} s after the run's end; what it had still to write "
                    "may be missing"
                )

    async def _rounds(self) -> None:
        while not self._is_over:
            await self._sample()
            self._feed()
            end = time.monotonic() + self._every_s
            while not self._is_over and (left := end - time.monotonic()) > 0:
                with suppress(TimeoutError):
                    async with asyncio.timeout(left):  # `wait_for` of Python 3.11 loses a cancellation at that moment
                        await self._heard.wait()
                    self._feed()
        if not self._silent:
            await self._sample()

    async def _sample(self) -> None:
        """One question, which has as long as the time between two."""
        task = asyncio.ensure_future(self._ask(self._every_s / 2))
        done, _ = await asyncio.wait([task], timeout=self._every_s)
        if not done:
            task.cancel()
            fault = f"no answer within {self._every_s:g} s"
        elif task.cancelled():
            fault = "the question was cancelled"
        elif (error := task.exception()) is not None:
            fault = f"{type(error).__name__}: {error}"
        else:
            sample, spans = task.result()
            fault = ""
            self._new.spans += spans
        if fault and not self._silent:
            self._say(f"observe: rollout service: {fault}")
        self._silent = bool(fault)
        self._new.samples.append(Sample(time.time(), fault=fault) if fault else sample)

    def _feed(self, ended: str = "") -> None:
        self._heard.clear()
        new, self._new = self._new, _New()
        spans = (*new.spans, *self._activity.take())
        batch = Batch(time.time(), tuple(new.samples), spans, tuple(new.steps), tuple(new.probes), ended)
        for feeder in self._feeders:
            feeder.put(batch)
