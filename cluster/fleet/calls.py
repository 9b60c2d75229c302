"""Calls of actors and services: each has a deadline that names whom it waited for, and each death is one line."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from typing import Any, NoReturn, TypeVar

from cluster.fleet.ray_quirks import LOST, Died, lost

__all__ = ["Died", "all_within", "ask", "beside", "each_within", "within"]
from rollout.waits import Late, deadline

T = TypeVar("T")
LIFE_S = 5.0  # between two questions to a service that works whether it still answers
DEATH_S = 10.0  # in which Ray tells of a process that is gone, after those that met it in a collective have failed


async def within(seconds: float, what: str, work: Awaitable[T]) -> T:
    """`work`, or Late naming who was."""
    async with deadline(seconds, f"{what}: no answer"):
        return await work


async def all_within(seconds: float, what: str, answers: Mapping[str, Coroutine[Any, Any, T]]) -> list[T]:
    """The answers by who gives them, all waited for at once, in their order; the first failure ends the waiting.

    Raises:
        Died: one of them is no more, which others may have noticed before: for them a collective has failed.
        Late: names those without an answer. A rank that is late holds up all that meet it in a collective.
    """
    tasks = {name: asyncio.create_task(answer) for name, answer in answers.items()}
    if not tasks:  # a pool without engines, as the teacher's beside an adapter
        return []
    try:
        await asyncio.wait(tasks.values(), timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        if failed := _failures(tasks.values()):
            raise next((error for error in failed if isinstance(error, Died)), None) or await _death(tasks, failed[0])
        late = [name for name, task in tasks.items() if not task.done()]
        if late:
            raise Late(f"{what}: no answer from {', '.join(late)} (of {len(tasks)}) within {seconds:g} s")
        return [task.result() for task in tasks.values()]
    finally:
        for task in tasks.values():
            task.cancel()


def _failures(tasks: Iterable["asyncio.Task[Any]"]) -> list[BaseException]:
    return [error for task in tasks if task.done() and (error := task.exception()) is not None]


async def _death(tasks: Mapping[str, "asyncio.Task[Any]"], failure: BaseException) -> BaseException:
    """The first death among those that have not answered, within `DEATH_S`; otherwise the failure."""
    end = asyncio.get_running_loop().time() + DEATH_S
    while pending := [task for task in tasks.values() if not task.done()]:
        left = end - asyncio.get_running_loop().time()
        done, _ = await asyncio.wait(pending, timeout=max(left, 0), return_when=asyncio.FIRST_COMPLETED)
        if deaths := [error for error in _failures(done) if isinstance(error, Died)]:
            return deaths[0]
        if not done:
            break
    return failure


async def beside(work: Coroutine[Any, Any, T], life: Callable[[], Awaitable[object]]) -> T:
    """`work`, given up when `life`, which is asked for again and again meanwhile, raises. Where both fail at once it is
    the failure of `work`."""
    task, signs = asyncio.create_task(work), asyncio.create_task(_asked_on(life))
    try:
        await asyncio.wait({task, signs}, return_when=asyncio.FIRST_COMPLETED)
        return await (task if task.done() else signs)
    finally:
        task.cancel()
        signs.cancel()


async def _asked_on(life: Callable[[], Awaitable[object]]) -> NoReturn:
    while True:
        await asyncio.sleep(LIFE_S)
        await life()


async def each_within(seconds: float, name: str, what: str, stream: Any) -> AsyncIterator[Any]:
    """What the actor called `name` yields, each with the deadline; Died in one line when it is no more."""
    while True:
        try:
            yield await within(seconds, what, await within(seconds, what, anext(stream)))
        except StopAsyncIteration:
            return
        except LOST as error:
            raise lost(name, error) from None


async def ask(name: str, handle: Any, method: str, *arguments: Any, **options: Any) -> Any:
    """What the method of an actor answers.

    Raises:
        Died: one line, when the actor called `name` is no more, or one that it asked in turn.
        what the method raises.
    """
    try:
        return await getattr(handle, method).remote(*arguments, **options)
    except LOST as error:
        raise lost(name, error) from None
