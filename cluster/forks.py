"""Python work over many things at once: a process a core, each with a part of them."""

import multiprocessing
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from rollout.cores import num_cores
from rollout.ending import end_with_parent

T = TypeVar("T")
MANY = 10_000  # things below which to start processes takes longer than the work
_work: Callable[[range], Any]


def in_parts(work: Callable[[range], T], count: int) -> list[T]:
    """What `work` makes of consecutive ranges that cover range(count), in their order.

    Each but a small count's is made in a process that is forked from this one: it has what `work` reaches without being
    sent it, and sends its answer alone. They end with this one, and once it is interrupted. Not for a process with
    threads that hold locks, or with a GPU.

    Raises:
        RuntimeError: one of the processes was killed.
    """
    parts = num_cores() if count >= MANY else 1
    ranges = [range(count * place // parts, count * (place + 1) // parts) for place in range(parts)]
    if parts == 1:
        return [work(ranges[0])]
    try:
        with ProcessPoolExecutor(parts, multiprocessing.get_context("fork"), _hold, (work,)) as processes:
            try:
                return list(processes.map(_do, ranges))
            except KeyboardInterrupt:
                for process in multiprocessing.active_children():
                    process.kill()
                raise
    except BrokenProcessPool:
        way = "if the host ran out of memory, check the file in parts"
        raise RuntimeError(f"processes: found one of {parts} killed, expected all to end: {way}") from None


def _hold(work: Callable[[range], Any]) -> None:
    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process: the first one says so, and ends them
    end_with_parent()
    _work = work


def _do(part: range) -> Any:
    return _work(part)
