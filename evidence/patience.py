"""Patience with a store or a disk, and its end: attempts that follow each other for a while, and a deadline around
each, since some stores' clients retry for an hour, a network's disk may hang for ever, and neither can be stopped."""

import asyncio
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, wait
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

T = TypeVar("T")
FIRST_S, LONGEST_S = 0.5, 30.0  # between two attempts
REMOVAL_S = 10.0  # for what is no loss if it stays
HUNG_S = 900.0  # for an attempt at a disk or a store, whose own deadlines for a shard come first (660 s)
Final = tuple[type[OSError], ...]


class Hung(OSError):
    """What neither refuses nor answers. It is not tried again: what hangs may still be done."""


class Aside(Executor):
    """Each call has a thread of its own, which does not hold the process up when it ends, as an executor's would."""

    def submit(self, call: Callable[..., Any], /, *given: Any, **named: Any) -> "Future[Any]":
        """Begins the call, which nothing cancels."""
        answer: Future[Any] = Future()
        answer.set_running_or_notify_cancel()
        Thread(target=_answer, args=(answer, partial(call, *given, **named)), daemon=True).start()
        return answer


def _answer(answer: "Future[Any]", call: Callable[[], Any]) -> None:
    with ExitStack() as ending:
        ending.push(partial(_failed, answer))
        answer.set_result(call())


def _failed(answer: "Future[Any]", kind: object, error: BaseException | None, trace: object) -> bool:
    if error is not None:
        answer.set_exception(error)
    return True


def within(seconds: float | None, work: Callable[[], T]) -> T:
    """What `work` returns, run in a thread that does not hold the process up when it ends.

    Raises:
        TimeoutError: "no answer within ... s", but for None seconds; the thread is left to itself.
        OSError: that of `work`; another error of its as an OSError that begins with the type, with the error as its
            cause: a filesystem behind fsspec+ raises what the library beneath it has (botocore's, azure's).
    """
    answer = Aside().submit(work)
    if not wait([answer], seconds).done:
        raise TimeoutError(f"no answer within {seconds:g} s")
    error = answer.exception()
    if error is None or isinstance(error, OSError):
        return answer.result()  # type: ignore[no-any-return]
    raise OSError(f"{type(error).__name__}: {error}") from error


def bounded(place: str | Path, work: Callable[[], T], seconds: float | None = None) -> T:
    """What `work` returns, which reads or writes at `place`, or raises.

    Raises:
        Hung: names the place, after `seconds` (None: `HUNG_S`); the thread is left to itself.
    """
    answer, seconds = Aside().submit(work), HUNG_S if seconds is None else seconds
    if not wait([answer], seconds).done:
        raise _hung(place, seconds)
    return answer.result()  # type: ignore[no-any-return]


async def _bounded_beside(place: str | Path, work: Callable[[], T]) -> T:
    """As `bounded`: the loop goes on."""
    seconds, answer = HUNG_S, asyncio.get_running_loop().run_in_executor(Aside(), work)
    try:
        if not (await asyncio.wait([answer], timeout=seconds))[0]:
            raise _hung(place, seconds)
        return answer.result()
    finally:
        answer.cancel()


def _hung(place: str | Path, seconds: float) -> Hung:
    return Hung(f"{place}: found no answer within {seconds:g} s, expected a disk or a store that answers or refuses")


def retried(seconds: float, work: Callable[[], T], final: Final = ()) -> T:
    """What `work` returns, tried again after an OSError until `seconds` have passed, those of its attempts too; the
    last OSError then, and at once one of the types `final`. For a process whose caller has a deadline."""
    pauses = _pauses(time.monotonic() + seconds, time.monotonic)
    while True:
        try:
            return work()
        except OSError as error:
            time.sleep(_pause(pauses, error, final))


def retried_within(seconds: float, place: str | Path, work: Callable[[], T], final: Final = ()) -> T:
    """As `retried`, each attempt as `bounded`."""
    return retried(seconds, partial(bounded, place, work), final)


async def retried_beside(seconds: float, place: str | Path, work: Callable[[], T], final: Final = ()) -> T:
    """As `retried_within`: the loop goes on."""
    clock = asyncio.get_running_loop().time
    pauses = _pauses(clock() + seconds, clock)
    while True:
        try:
            return await _bounded_beside(place, work)
        except OSError as error:
            pause = _pause(pauses, error, final)
        await asyncio.sleep(pause)


async def remove_beside(folder: Path) -> None:
    """Removes the folder, as far as its disk lets that be done soon."""
    with suppress(TimeoutError):
        async with asyncio.timeout(REMOVAL_S):
            await retried_beside(0.0, folder, partial(shutil.rmtree, folder, ignore_errors=True))


def _pause(pauses: Iterator[float], error: OSError, final: Final) -> float:
    """The seconds until the next attempt; raises `error` where there is none."""
    pause = None if isinstance(error, (Hung, *final)) else next(pauses, None)
    if pause is None:
        raise error
    print(f"{error}; tried again in {pause:g} s", flush=True)  # an actor's goes to its log
    return pause


def _pauses(end: float, clock: Callable[[], float]) -> Iterator[float]:
    """Twice as long each time; none beyond the time `end`."""
    pause = FIRST_S
    while (left := end - clock()) > 0:
        yield min(pause, left)
        pause = min(2 * pause, LONGEST_S)
