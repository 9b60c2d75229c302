"""Waiting on one event loop: a deadline that names itself, deadlines that may be paused, and a gate."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Late(TimeoutError):
    """Somebody who was asked has not answered, and may be no more. A disk says TimeoutError too (ETIMEDOUT)."""


@asynccontextmanager
async def deadline(seconds: float, late: str) -> AsyncIterator[asyncio.Timeout]:
    """Late "`late` within ... s" for what is inside, after `seconds`. One that comes from inside names its own
    cause, and passes."""
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            yield limit
    except TimeoutError:
        if not limit.expired():
            raise
        raise Late(f"{late} within {seconds:g} s") from None


class Deadlines:
    """Deadlines of work whose workers may be lost: while they are paused none ends, and after that each begins anew."""

    def __init__(self) -> None:
        self._limits: dict[asyncio.Timeout, float] = {}
        self._are_paused = False

    @asynccontextmanager
    async def within(self, seconds: float, late: str) -> AsyncIterator[None]:
        """See `deadline`."""
        async with deadline(seconds, late) as limit:
            self._limits[limit] = seconds
            if self._are_paused:
                limit.reschedule(None)
            try:
                yield
            finally:
                del self._limits[limit]

    def pause(self, paused: bool) -> None:
        """Pauses all of them, or lets each begin anew."""
        self._are_paused = paused
        for limit in self._limits:
            self._begin(limit)

    def _begin(self, limit: asyncio.Timeout) -> None:
        if not limit.expired():
            end = asyncio.get_running_loop().time() + self._limits[limit]
            limit.reschedule(None if self._are_paused else end)


class Turnstile:
    """What has passed it is counted until it is through; while it is closed nothing passes."""

    def __init__(self) -> None:
        self._inside, self._is_open, self._changed = 0, True, asyncio.Condition()

    async def __aenter__(self) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._is_open)
            self._inside += 1

    async def __aexit__(self, *failure: object) -> None:
        async with self._changed:
            self._inside -= 1
            self._changed.notify_all()

    async def close(self) -> None:
        """Returns when nothing is inside."""
        self._is_open = False
        async with self._changed:
            await self._changed.wait_for(lambda: self._inside == 0)

    async def open(self) -> None:
        """Lets pass what waits."""
        async with self._changed:
            self._is_open = True
            self._changed.notify_all()
