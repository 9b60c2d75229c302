"""A run that is asked to stop: by SIGTERM (Slurm, Kubernetes, `ray job stop`) or Ctrl-C.

Once: the step at hand is ended where it fits the grace, a checkpoint is written, and the exit status says that the run
is to be resumed. Twice: at once. What stands in the run's folder is continued either way.
"""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cluster.errors import Preempted

SIGNALS = (signal.SIGTERM, signal.SIGINT)
STEP_SHARE = 2 / 3  # of the grace; what is left is for the services to end


class Stop:
    """Whether the run under way in `task` was asked to stop.

    grace_s: seconds that whoever asks waits before it kills.
    """

    def __init__(self, task: "asyncio.Task[Any]", grace_s: float) -> None:
        self._task, self._grace_s = task, grace_s
        self._patient = False  # whether a step is under way that may be waited for
        self._ending: asyncio.TimerHandle | None = None  # of a step that does not fit the grace
        self.asked = ""  # the signal's name

    @contextmanager
    def between_steps(self) -> Iterator[None]:
        """Within it `asked` is looked at between two steps, and is waited for."""
        self._patient = True
        try:
            yield
        finally:
            self._patient = False
            if self._ending is not None:  # else it would end what comes after the steps: services that end
                self._ending.cancel()

    def heed(self, number: signal.Signals) -> None:
        """A signal has come."""
        if self.asked or not self._patient:
            self._task.cancel()
        else:
            self._ending = asyncio.get_running_loop().call_later(self._grace_s * STEP_SHARE, self._task.cancel)
        self.asked = self.asked or number.name


@contextmanager
def heeding(grace_s: float) -> Iterator[Stop]:
    """Within it the signals stop the task that is under way, which is no failure.

    Raises:
        Preempted: what was under way did not end within the grace, or was asked twice.
    """
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    stop = Stop(task, grace_s)
    for number in SIGNALS:
        loop.add_signal_handler(number, stop.heed, number)
    try:
        yield stop
    except asyncio.CancelledError:
        if not stop.asked:
            raise
        raise Preempted(f"stopped by {stop.asked} amid a step: --resume continues from what stands") from None
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)
