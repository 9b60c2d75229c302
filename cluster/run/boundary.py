"""The one boundary that every failure of a run passes: where it came from says what it is, not its Python type.

Before a run has begun a ValueError is bad input, which a user mends (exit status 2). From then on everything is a
failure at run time, with the stage that it ended (exit status 1): a damaged shard, a torn line, a late prompt.
"""

import asyncio
import os
import pickle
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import pyarrow as pa
from ray.exceptions import RayError, RayTaskError
from safetensors import SafetensorError

from cluster.errors import PREEMPTED, Preempted, cause_of, explained, leaves
from cluster.fleet.calls import Died
from cluster.fleet.processes import end_processes, own_processes
from cluster.observe.observer import FAILED, RESTARTING, STOPPED
from cluster.observe.sinks import MetricsSink
from cluster.run.rundir import RunDir
from cluster.run.stop import Stop
from rollout.waits import Late

READERS = (pa.ArrowException, SafetensorError, pickle.UnpicklingError, zipfile.BadZipFile, EOFError)
OUTSIDE = (*READERS, RayError)  # of libraries, which are no ValueError or RuntimeError


@contextmanager
def run_time(sink: MetricsSink, takes_input: bool = False, has_stood: bool = False) -> Iterator[None]:
    """What fails within it is one line a cause, with the stage that it ended.

    takes_input: whether a ValueError is bad input that shows only here, such as a teacher's server without a model.
    has_stood: whether it is a start of what this run has started before: where a service fails in it something died
        meanwhile, such as one of an engine's workers, of which vLLM says only that it did not start.

    Raises:
        Died: a service or a rank is no more, or does not answer.
        RuntimeError: another failure.
        ValueError: bad input, where that is looked at.
        a mistake of our own, with the stage as a note.
    """
    try:
        yield
    except* (RuntimeError, ValueError, OSError, *OUTSIDE) as errors:
        causes = [_named(leaf) for leaf in leaves(errors)]
        lines, status = explained(ExceptionGroup("", causes))
        if takes_input and status == 2:
            raise ValueError("; ".join(lines)) from None
        # What a service raised is a RayError, and that this host's raylet is no more is none.
        died = any(is_lost(error) or (has_stood and isinstance(error, RayError)) for error in leaves(errors))
        raise (Died if died else RuntimeError)(f"{sink.doing}: {'; '.join(lines)}") from None


def end_at_once(sink: MetricsSink, folder: RunDir, line: str, stop: Stop | None = None) -> NoReturn:
    """Ends the process, and what it started, with exit status 1 and a line of the stage: for a failure after which
    nothing would come to an end that ends as usual. Where the run had been asked to stop, the status is that of such a
    run: whoever ends a whole cluster may end this process last."""
    asked = stop.asked if stop else ""
    try:
        sink.close()
        line += f" after {asked} had asked the run to stop" if asked else ""
        print(f"edge-opd: {sink.doing}: {line}; --resume continues from what stands", file=sys.stderr, flush=True)
        end_processes(own_processes()[:-1])  # before another run may have the folder that they write to
        folder.release()
    finally:
        os._exit(PREEMPTED if asked else 1)


def ending(error: BaseException, stop: Stop, may_restart: Callable[[], bool]) -> str:
    """What the page and the trackers call the end of a run by this error, as in `Batch.ended`.

    may_restart: whether the services start again after one of them is lost.
    """
    lost = any(is_lost(leaf) for leaf in leaves(error))
    if isinstance(error, Preempted) or (stop.asked and (lost or isinstance(error, asyncio.CancelledError))):
        return STOPPED
    return RESTARTING if lost and may_restart() else FAILED


def _named(leaf: BaseException) -> Exception:
    """A library's own error with its kind, which says more than its text alone."""
    cause = cause_of(leaf)
    assert isinstance(cause, Exception)
    if not isinstance(cause, OUTSIDE) or isinstance(cause, (ValueError, OSError)):
        return cause
    first = (str(cause).strip().splitlines() or [""])[0]
    return RuntimeError(f"{type(cause).__name__}: {first}")


def is_lost(error: BaseException) -> bool:
    """Whether it says that a service or a rank is no more, or does not answer; of what hangs behind them they say so
    themselves."""
    return isinstance(error, Died) or (isinstance(error, Late) and not isinstance(error, RayTaskError))
