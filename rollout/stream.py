"""Which rollouts are under way, which are done, and which are too old to be learned from.

A step's groups begin as soon as the staleness bound lets them. By default each is learned from within the bound, and a
step waits for those that no later step could take: the bound is a rule of admission, nothing is ever too old, and long
answers are as frequent among what is learned from as among what was sampled. In the other order a step takes what is
done first and waits for nothing: a slow engine delays its own groups only, but what gets too old meanwhile is sampled
again, so that long answers become rare. With a bound of 0 there is one order: nothing is under way that is not of the
step that is waited for.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from functools import partial
from itertools import islice
from math import inf
from typing import Protocol

from evidence.advantage import Rewards
from evidence.records import Sample
from rollout.requests import GroupRequests, StepRequests
from rollout.waits import Deadlines, Turnstile
from rollout.worker import Group, Taken

GROUP_STATES = ("sampling", "verifying", "scoring", "done")


class Roller(Protocol):
    """Samples, verifies and scores one group of requests. begun: is told when an engine takes them, before the first
    token, and again where they begin anew."""

    async def sample(self, group: GroupRequests, student_version: int, begun: Callable[[], None]) -> list[Sample]: ...

    async def verify(self, samples: Sequence[Sample]) -> Rewards: ...

    async def score(
        self, group: GroupRequests, samples: Sequence[Sample], rewards: Rewards, teacher_version: int
    ) -> Group: ...


class RolloutStream:
    """The groups of every step before `end`, none of them older than `max_lag` versions when it is taken.

    order: in which steps take groups, `begun` or `done`.
    deadline_s: for the groups of one step, from the first one's first token to the last one's last score; a group may
    have those of `max_lag` other steps before it. deadlines: of all work that engines do.
    """

    def __init__(
        self,
        roller: Roller,
        requests: StepRequests,
        end: int,
        max_lag: int,
        deadline_s: float,
        order: str = "begun",
        deadlines: Deadlines | None = None,
    ) -> None:
        self._deadlines = deadlines or Deadlines()
        self._roller, self._requests, self._order = roller, requests, order
        self._end, self._max_lag, self._deadline_s = end, max_lag, deadline_s * (max_lag + 1)
        self._next: int | None = None  # the step that has not begun
        self._learned: frozenset[str] = frozenset()
        self._student_version = self._teacher_version = 0
        # of groups that no step has taken, in the order in which they were given out: the last step that may learn from
        # them, by the version that their engine had at first; inf before an engine has them
        self._due: dict[str, float] = {}
        self._done: dict[str, Group] = {}
        self._oldest = inf  # no group that is done has a token of a version before it
        self._under_way: set[asyncio.Task[Group]] = set()
        self._changed = asyncio.Event()
        self._failure: BaseException | None = None
        self._begun: dict[int, tuple[int, int]] = {}  # step: its groups, and its prompts that do not fit
        self._scoring = Turnstile()
        self._rolling: dict[str, tuple[str, float]] = {}  # group: what is done to it, and since when it is under way

    def resume(self, learned: Collection[str]) -> None:
        """Before the first `advance`: the groups of these names have been learned from. With a lag they are not just
        those of the steps before: what else those steps have begins first, and what they took ahead is not drawn
        again."""
        self._learned = frozenset(learned)

    def _unlearned(self, step: int) -> tuple[list[GroupRequests], int, int]:
        """The step's groups that are still to be learned from; how many it has in all; its prompts that do not fit."""
        groups, refused = self._requests.of(step)
        return [group for group in groups if group.name not in self._learned], len(groups), refused

    def advance(self, version: int) -> None:
        """The student's engines hold `version`: every step that may now begin does, from step `version` on.

        Raises:
            ValueError: too many of a step's prompts do not fit.
        """
        self._student_version = version
        first = self._next
        if first is None:
            first = 0 if self._learned else version
        self._next = min(self._end, version + self._max_lag + 1)
        for step in range(first, self._next):
            groups, size, refused = self._unlearned(step)
            if step >= version:
                self._begun[step] = size, refused
            for group in groups:
                self._begin(group)

    async def take(self, step: int) -> Taken:
        """As many groups as step `step` has prompts that fit, as soon as they are done and within the bound.

        Raises:
            TimeoutError: a group was not done within the deadline; names it.
        """
        (size, refused), dropped = self._begun[step], 0
        while True:
            if self._failure is not None:
                raise self._failure
            dropped += self._drop_stale(step - self._max_lag)
            if names := self._next_names(step, size):
                break
            self._changed.clear()
            await self._changed.wait()
        taken = [self._leave(name) for name in names]
        del self._begun[step]
        return Taken(sorted(taken, key=lambda group: group.requests.place), refused, dropped)

    def _next_names(self, step: int, size: int) -> list[str]:
        """The groups that a step of `size` takes; none while it has to wait."""
        if len(self._done) < size:
            return []
        if self._order == "done":  # what would be too old for the next step goes first
            return sorted(self._done, key=lambda name: self._done[name].version_min)[:size]
        if any(due <= step and name not in self._done for name, due in self._due.items()):
            return []  # as the check below would say, at more cost
        names = list(islice((name for name in self._due if name in self._done), size))
        return names if self._leaves_time(step, set(names)) else []

    def _leaves_time(self, step: int, taken: Collection[str]) -> bool:
        """Whether later steps can take what is left before it is too old: up to each of them, no more is due than they
        have room for."""
        dues = Counter(due for name, due in self._due.items() if name not in taken)
        left = room = 0
        for later in range(step, step + self._max_lag):
            left += dues[later]
            if left > room:
                return False
            room += self._begun[later + 1][0] if later + 1 in self._begun else 0
        return True

    def _leave(self, name: str) -> Group:
        del self._due[name]
        return self._done.pop(name)

    def _has_begun(self, name: str) -> None:
        self._due[name] = self._student_version + self._max_lag

    def _drop_stale(self, oldest: int) -> int:
        """Begins again what holds a token of a version before `oldest`; returns the number of rollouts."""
        if oldest <= self._oldest:
            return 0
        self._oldest = oldest
        stale = [name for name, group in self._done.items() if group.version_min < oldest]
        groups = [self._leave(name).requests for name in stale]
        for group in groups:
            self._begin(group.again())
        return sum(len(group.rows) for group in groups)

    def _begin(self, group: GroupRequests) -> None:
        self._due[group.name] = inf
        task = asyncio.create_task(self._roll(group))
        task.add_done_callback(lambda _: self._rolling.pop(group.name, None))
        self._under_way.add(task)
        task.add_done_callback(self._settle)

    async def _roll(self, group: GroupRequests) -> Group:
        async with self._deadlines.within(self._deadline_s, f"rollouts of group {group.name}: not done"):
            begun = time.monotonic()
            self._rolling[group.name] = "sampling", begun
            samples = await self._roller.sample(group, self._student_version, partial(self._has_begun, group.name))
            self._rolling[group.name] = "verifying", begun
            rewards = await self._roller.verify(samples)
            async with self._scoring:
                self._rolling[group.name] = "scoring", begun
                return await self._roller.score(group, samples, rewards, self._teacher_version)

    def _settle(self, task: "asyncio.Task[Group]") -> None:
        self._under_way.discard(task)
        if task.cancelled():
            return
        if task.exception() is None:
            group = task.result()
            self._done[group.requests.name] = group
            self._oldest = min(self._oldest, group.version_min)
        self._failure = self._failure or task.exception()
        self._changed.set()

    @property
    def version(self) -> int:
        """What the student's engines hold."""
        return self._student_version

    def states(self) -> tuple[dict[str, int], float]:
        """Groups by what is done to them (`GROUP_STATES`), and the age of the oldest that is not done, s."""
        counts = Counter(state for state, _ in self._rolling.values())
        begun = min((since for _, since in self._rolling.values()), default=time.monotonic())
        groups = {state: counts[state] for state in GROUP_STATES} | {"done": len(self._done)}
        return groups, time.monotonic() - begun

    async def pause_scoring(self) -> None:
        """Lets what is being scored finish, and nothing new begin: both views of a rollout are one teacher's."""
        await self._scoring.close()

    async def resume_scoring(self, teacher_version: int) -> None:
        """Scores by the teacher of `teacher_version`."""
        self._teacher_version = teacher_version
        await self._scoring.open()
