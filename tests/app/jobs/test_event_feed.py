"""The event feed: one connection, which is opened while somebody follows a job."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from app.jobs import event_feed
from app.jobs.event_feed import EventFeed
from app.jobs.events import EventEntry, events_key
from app.redis_client import connect_async
from app.settings import Settings


def test_a_job_that_is_followed_while_the_connection_is_closed_is_read(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = redis.connection_pool.connection_kwargs["port"]
    settings = Settings(redis_url=f"redis://127.0.0.1:{port}/0")

    async def run() -> None:
        opened, closing = asyncio.Event(), asyncio.Event()

        @asynccontextmanager
        async def connect_and_close_slowly(settings: Settings) -> AsyncIterator[AsyncRedis]:
            async with connect_async(settings) as connection:
                opened.set()
                yield connection
            closing.set()
            await asyncio.sleep(0.1)

        monkeypatch.setattr(event_feed, "connect_async", connect_and_close_slowly)
        feed = EventFeed(settings)
        with feed.subscribe("first") as subscription:
            subscription.start(0)
            await asyncio.wait_for(opened.wait(), 200)
        await asyncio.wait_for(closing.wait(), 200)
        with feed.subscribe("second") as subscription:
            subscription.start(0)
            redis.xadd(events_key("second"), {"type": "state", "job": "{}"}, id="1-0")
            assert [entry.revision for entry in await subscription.next(20)] == [1]
        await feed.close()

    asyncio.run(run())


def test_what_subscribers_make_of_an_entry_is_made_once_and_again_after_a_failure() -> None:
    """Entries of two jobs that are equal are not the same entry."""
    entries = [EventEntry(1, "progress", b"{}"), EventEntry(1, "progress", b"{}")]
    calls: list[str] = []

    async def run() -> None:
        feed = EventFeed(Settings())

        async def subscriber(job: int, fails: bool = False) -> str:
            async def make() -> str:
                calls.append(f"job {job}")
                await asyncio.sleep(0.01)
                if fails:
                    raise ValueError
                return f"job {job}"

            return await feed.share(entries[job], make)

        failed = await asyncio.gather(*(subscriber(0, fails=True) for _ in range(3)), return_exceptions=True)
        assert [type(error) for error in failed] == [ValueError] * 3 and calls == ["job 0"]
        impatient = asyncio.create_task(subscriber(0))
        await asyncio.sleep(0)
        impatient.cancel()  # the others get it all the same
        made = await asyncio.gather(*(subscriber(number % 2) for number in range(100)))
        assert made == ["job 0", "job 1"] * 50
        assert sorted(calls) == ["job 0", "job 0", "job 1"]

    asyncio.run(run())


def test_what_subscribers_do_at_the_same_time_is_done_once_and_later_again() -> None:
    calls: list[str] = []

    async def run() -> None:
        feed = EventFeed(Settings())

        async def subscriber(job: str, fails: bool = False) -> str:
            async def make() -> str:
                calls.append(job)
                await asyncio.sleep(0.01)
                if fails:
                    raise ValueError
                return job

            return await feed.join(job, make)

        impatient = asyncio.create_task(subscriber("a"))
        await asyncio.sleep(0)
        impatient.cancel()  # the others get it all the same
        assert await asyncio.gather(*(subscriber("ab"[number % 2]) for number in range(100))) == ["a", "b"] * 50
        assert sorted(calls) == ["a", "b"]
        failed = await asyncio.gather(*(subscriber("a", fails=True) for _ in range(3)), return_exceptions=True)
        assert [type(error) for error in failed] == [ValueError] * 3
        assert await subscriber("a") == "a" and sorted(calls) == ["a", "a", "a", "b"]

    asyncio.run(run())
