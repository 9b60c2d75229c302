"""The keys of [faults]."""

from collections import deque
from dataclasses import dataclass

from evidence.require import require


@dataclass(frozen=True)
class FaultsConfig:
    """What a run survives by itself."""

    # of one engine, or of all services, within restart_window_s; 0: what dies or hangs ends the run
    max_restarts: int = 3
    restart_window_s: float = 3600.0  # seconds in which restarts are counted
    silent_s: float = 60.0  # seconds after which an engine or the rollout service hangs that gives no answer
    teacher_check_every: int = 10  # steps between checks that a frozen teacher scores as at first; 0: at starts only
    # seconds for which a write or a read is tried again that the store of the shards or the run's disk refuses
    store_s: float = 300.0
    # what becomes of a rollout with a log-prob that is not finite, and of an update with such a gradient: stop ends the
    # run and names it; skip leaves it out and counts it
    nonfinite: str = "stop"
    max_nonfinite: int = 10  # with skip: rollouts and updates that may be left out, after which the run ends
    grace_s: float = 30.0  # seconds from SIGTERM to SIGKILL, in which a step is ended and a checkpoint written

    def outlived_s(self, seconds: float, start_s: float) -> float:
        """Of work that takes `seconds`, where one engine is lost as often as it may be, and its successor starts within
        `start_s`."""
        return seconds + self.max_restarts * (self.silent_s + start_s + seconds)

    def __post_init__(self) -> None:
        require(self.max_restarts >= 0, "faults.max_restarts", self.max_restarts, "0 or more")
        require(self.restart_window_s > 0, "faults.restart_window_s", self.restart_window_s, "more than 0 seconds")
        require(self.silent_s > 0, "faults.silent_s", self.silent_s, "more than 0 seconds")
        every = self.teacher_check_every
        require(every >= 0, "faults.teacher_check_every", every, "0 or more")
        require(self.store_s >= 0, "faults.store_s", self.store_s, "0 seconds (at once) or more")
        require(self.nonfinite in ("stop", "skip"), "faults.nonfinite", self.nonfinite, "stop or skip")
        require(self.max_nonfinite >= 0, "faults.max_nonfinite", self.max_nonfinite, "0 or more")
        require(self.grace_s >= 0, "faults.grace_s", self.grace_s, "0 seconds or more")


class Skipped:
    """What was left out of a run since its start, since it was not finite."""

    def __init__(self, faults: FaultsConfig) -> None:
        self._most, self._count = faults.max_nonfinite, 0

    def add(self, count: int) -> None:
        """RuntimeError when it is more than the bound."""
        self._count += count
        if self._count > self._most:
            raise RuntimeError(
                f"found {self._count} rollouts and updates that are not finite, expected at most {self._most} "
                "(faults.max_nonfinite)"
            )


class Restarts:
    """How often one thing was started again."""

    def __init__(self, faults: FaultsConfig) -> None:
        self._faults, self._times = faults, deque[float]()

    def are_left(self, now: float) -> bool:
        """Whether one at `now`, in seconds, is within the bound."""
        while self._times and self._times[0] < now - self._faults.restart_window_s:
            self._times.popleft()
        return len(self._times) < self._faults.max_restarts

    def allow(self, now: float) -> bool:
        """Counts one at `now`, in seconds; whether it is within the bound."""
        if allowed := self.are_left(now):
            self._times.append(now)
        return allowed
