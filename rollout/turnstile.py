"""A gate for tasks of one event loop."""

import asyncio


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
