"""Patience with a store or a disk, and its end: attempts that follow each other for a while, and a deadline around
each, since some stores' clients retry for an hour, and none can be stopped."""

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from multiprocessing.pool import ThreadPool
from typing import TypeVar

T = TypeVar("T")
FIRST_S, LONGEST_S = 0.5, 30.0  # between two attempts
Final = tuple[type[OSError], ...]


def within(seconds: float | None, work: Callable[[], T]) -> T:
    """What `work` returns, run in a thread that does not hold the process up when it ends.

    Raises:
        TimeoutError: "no answer within ... s", but for None seconds; the thread is left to itself.
        OSError: that of `work`; another error of its as an OSError that begins with the type, with the error as its
            cause: a filesystem behind fsspec+ raises what the library beneath it has (botocore's, azure's).
    """
    answer: Future[T] = Future()
    with ThreadPool(1) as pool:  # unlike an executor's, its thread is a daemon
        pool.apply_async(work, callback=answer.set_result, error_callback=answer.set_exception)
        if not wait([answer], seconds).done:
            raise TimeoutError(f"no answer within {seconds:g} s")
    error = answer.exception()
    if error is None or isinstance(error, OSError):
        return answer.result()
    raise OSError(f"{type(error).__name__}: {error}") from error


def retried(seconds: float, work: Callable[[], T], final: Final = ()) -> T:
    """What `work` returns, tried again after an OSError until `seconds` have passed, those of its attempts too; the
    last OSError then, and at once one of the types `final`."""
    pauses = _pauses(time.monotonic() + seconds, time.monotonic)
    while True:
        try:
            return work()
        except OSError as error:
            time.sleep(_pause(pauses, error, final))


async def retried_beside(seconds: float, work: Callable[[], T], final: Final = ()) -> T:
    """As `retried`, each attempt in a thread: the loop goes on."""
    clock = asyncio.get_running_loop().time
    pauses = _pauses(clock() + seconds, clock)
    while True:
        try:
            return await asyncio.to_thread(work)
        except OSError as error:
            pause = _pause(pauses, error, final)
        await asyncio.sleep(pause)


def _pause(pauses: Iterator[float], error: OSError, final: Final) -> float:
    """The seconds until the next attempt; raises `error` where there is none."""
    pause = None if isinstance(error, final) else next(pauses, None)
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
