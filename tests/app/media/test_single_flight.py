import asyncio
from collections.abc import Awaitable, Callable

import pytest

from app.media.single_flight import SingleFlight, finish


class Work:
    """Work that waits to be released; counts how often it was begun and canceled."""

    def __init__(self) -> None:
        self.begun = self.canceled = 0
        self.released = asyncio.Event()

    async def __call__(self) -> int:
        self.begun += 1
        number = self.begun
        try:
            await self.released.wait()
        except asyncio.CancelledError:
            self.canceled += 1
            raise
        return number


def play(scene: Callable[[SingleFlight, Work], Awaitable[None]]) -> None:
    async def run() -> None:
        async with asyncio.timeout(60):
            await scene(SingleFlight(), Work())

    asyncio.run(run())


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_work_is_done_once_for_all_that_wait_for_it() -> None:
    async def scene(flights: SingleFlight, work: Work) -> None:
        waiting = [asyncio.create_task(flights.run("a", work)) for _ in range(3)]
        await settle()
        work.released.set()
        assert await asyncio.gather(*waiting) == [1, 1, 1]
        assert await flights.run("a", work) == 2  # nothing is kept

    play(scene)


def test_other_keys_are_other_work() -> None:
    async def scene(flights: SingleFlight, work: Work) -> None:
        work.released.set()
        assert await asyncio.gather(flights.run("a", work), flights.run("b", work)) == [1, 2]

    play(scene)


def test_work_goes_on_while_somebody_waits_and_is_canceled_when_nobody_does() -> None:
    async def scene(flights: SingleFlight, work: Work) -> None:
        first, second = (asyncio.create_task(flights.run("a", work)) for _ in range(2))
        await settle()
        first.cancel()  # it has begun the work
        await settle()
        assert (work.begun, work.canceled) == (1, 0)
        second.cancel()
        await settle()
        assert (work.begun, work.canceled) == (1, 1)
        work.released.set()
        assert await flights.run("a", work) == 2

    play(scene)


def test_who_asks_while_canceled_work_ends_starts_anew() -> None:
    async def scene(flights: SingleFlight, work: Work) -> None:
        left = asyncio.create_task(flights.run("a", work))
        await settle()
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        work.released.set()
        assert await flights.run("a", work) == 2

    play(scene)


def test_an_error_is_raised_for_all_that_wait_and_not_kept() -> None:
    async def scene(flights: SingleFlight, work: Work) -> None:
        async def fail() -> int:
            await work()
            raise ValueError

        waiting = [asyncio.create_task(flights.run("a", fail)) for _ in range(2)]
        await settle()
        work.released.set()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(result) for result in results] == [ValueError, ValueError]
        assert await flights.run("a", work) == 2

    play(scene)


def test_what_must_be_finished_delays_a_cancellation() -> None:
    async def scene(_: SingleFlight, work: Work) -> None:
        task = asyncio.create_task(finish(work()))
        await settle()
        task.cancel()
        await settle()
        assert not task.done() and not work.canceled
        work.released.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not work.canceled

    play(scene)
