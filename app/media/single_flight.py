"""Single flight: work that several requests ask for at once is done once for all of them, and for none in vain."""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar

Result = TypeVar("Result")


@dataclass
class _Flight:
    task: asyncio.Task[Any]
    waiting: int = 0


class SingleFlight:
    """Work in progress, by key. Not thread-safe: for the event loop of the server only."""

    def __init__(self) -> None:
        self._flights: dict[Hashable, _Flight] = {}
        self._canceled: set[asyncio.Task[Any]] = set()  # until they have ended

    async def run(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """Return what `work` returns, or what it does for another caller that waits under the same key.

        When the last caller that waits is canceled, so is the work. Raises what `work` raises.
        """
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = self._start(key, work)
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.task.done():
                del self._flights[key]  # who asks from now on starts anew
                self._canceled.add(flight.task)
                flight.task.cancel()

    def _start(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, Any]]) -> _Flight:
        flight = _Flight(asyncio.create_task(work()))

        def forget(done: asyncio.Task[Any]) -> None:
            if self._flights.get(key) is flight:
                del self._flights[key]
            self._canceled.discard(done)
            if not done.cancelled():
                done.exception()  # nobody may wait for it any more

        flight.task.add_done_callback(forget)
        return flight


async def finish(work: Coroutine[Any, Any, Result]) -> Result:
    """Return what `work` returns, which is not interrupted: a cancellation waits for its end."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
