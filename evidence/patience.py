"""A deadline of our own around what a store's client does: some retry for an hour, and none can be stopped."""

from collections.abc import Callable
from concurrent.futures import Future, wait
from multiprocessing.pool import ThreadPool
from typing import TypeVar

T = TypeVar("T")


def within(seconds: float, work: Callable[[], T]) -> T:
    """What `work` returns, run in a thread that does not hold the process up when it ends.

    Raises:
        TimeoutError: "no answer within ... s"; the thread is left to itself.
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
