"""Event feed: one connection to Redis per front-end process reads the event streams of all jobs that clients follow.

Subscribers are tasks on the event loop and hold no threads. An entry reaches them within milliseconds; the first entry
of a job that had no subscriber before, within `_BLOCK_MS`. While Redis is away subscribers keep waiting and miss
nothing: each stream is read on from where reading stopped. What subscribers make of an entry is made once (`share`),
and what many of them do at the same time is done together (`join`): hundreds of one job's, each for itself, would keep
the event loop from all other clients.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from redis.asyncio import Redis
from redis.exceptions import RedisError

from app.jobs.events import EventEntry, events_key
from app.redis_client import connect_async
from app.settings import Settings

log = logging.getLogger("earmark.feed")

_BLOCK_MS = 200  # the longest that one read blocks, and so the delay of a newly followed job's first entry
_RETRY_SECONDS = 0.5  # between two attempts while Redis does not answer
_AT_ONCE = 16  # subscribers that go on in one turn of the event loop: between turns it serves other clients

Result = TypeVar("Result")


class Subscription:
    """Receives the entries of one job. `start` sets the first of them; no entry before that call is lost."""

    def __init__(self, feed: "EventFeed", job_id: str) -> None:
        self._feed = feed
        self.job_id = job_id
        self.entries: asyncio.Queue[EventEntry | None] = asyncio.Queue()  # None: the feed has ended
        self._after = 0

    def start(self, after: int) -> None:
        """Receive entries of revisions above this one."""
        self._after = max(self._after, after)
        self._feed.start_reading(self.job_id, after)

    async def next(self, seconds: float) -> list[EventEntry]:
        """Return the new entries as soon as there is one; none after so many seconds, or when the feed ends."""
        try:
            async with asyncio.timeout(seconds):
                received = [await self.entries.get()]
        except TimeoutError:
            await self._feed.wait_for_turn()  # those that have begun together end together
            return []
        while not self.entries.empty():
            received.append(self.entries.get_nowait())
        new = [entry for entry in received if entry is not None and entry.revision > self._after]
        if new:
            self._after = new[-1].revision
        return new


class EventFeed:
    """The subscriptions of one process; its methods are to be called from the event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._subscriptions: dict[str, set[Subscription]] = {}
        self._last_revisions: dict[str, int] = {}  # by job: the last revision that its subscriptions have received
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._shared: WeakKeyDictionary[EventEntry, asyncio.Task[Any]] = WeakKeyDictionary()
        self._joined: dict[Hashable, asyncio.Task[Any]] = {}
        self._reader: asyncio.Task[None] | None = None
        self.ended = False

    @contextmanager
    def subscribe(self, job_id: str) -> Iterator[Subscription]:
        """Return a subscription to one job, for as long as the context lasts."""
        subscription = Subscription(self, job_id)
        if self.ended:
            subscription.entries.put_nowait(None)
        self._subscriptions.setdefault(job_id, set()).add(subscription)
        try:
            yield subscription
        finally:
            others = self._subscriptions[job_id]
            others.discard(subscription)
            if not others:
                del self._subscriptions[job_id]
                self._last_revisions.pop(job_id, None)

    async def share(self, entry: EventEntry, make: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """Return what `make` returns for a received entry: it is called once for all subscribers, and again if it has
        raised."""
        making = self._shared.get(entry)
        if making is None:
            making = self._shared[entry] = asyncio.create_task(make())

            def forget_failure(done: asyncio.Task[Any]) -> None:
                if done.cancelled() or done.exception() is not None:
                    self._shared.pop(entry, None)

            making.add_done_callback(forget_failure)
        made = await asyncio.shield(making)
        await self.wait_for_turn()
        return made

    async def join(self, what: Hashable, make: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """Return what `make` returns, or what it does for another subscriber that is waiting for the same."""
        making = self._joined.get(what)
        if making is None:
            making = self._joined[what] = asyncio.create_task(make())

            def forget(done: asyncio.Task[Any]) -> None:
                del self._joined[what]
                if not done.cancelled():
                    done.exception()  # its subscribers may have left

            making.add_done_callback(forget)
        made = await asyncio.shield(making)
        await self.wait_for_turn()
        return made

    async def wait_for_turn(self) -> None:
        """Go on in a turn of the event loop in which few others do."""
        async with self._turns:
            await asyncio.sleep(0)

    def start_reading(self, job_id: str, after: int) -> None:
        """Read the job's stream from that revision, unless it is read already."""
        self._last_revisions.setdefault(job_id, after)
        if self._reader is None or self._reader.done():
            self._reader = asyncio.create_task(self._read())

    def end(self) -> None:
        """End all subscriptions, so that the server can stop without waiting for its subscribers."""
        self.ended = True
        for subscriptions in self._subscriptions.values():
            for subscription in subscriptions:
                subscription.entries.put_nowait(None)

    async def close(self) -> None:
        """End, and close the connection."""
        self.end()
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)

    async def _read(self) -> None:
        """Distribute entries for as long as there are subscriptions."""
        while self._last_revisions and not self.ended:  # again: a job may be followed while the connection is closed
            async with connect_async(self._settings) as redis:
                await self._read_from(redis)

    async def _read_from(self, redis: Redis) -> None:
        while self._last_revisions and not self.ended:
            try:
                await self._read_once(redis)
            except (RedisError, OSError) as error:
                log.error("Redis does not answer: %s", error)
                await asyncio.sleep(_RETRY_SECONDS)
            except Exception:  # a defect must not stop the feed for all subscribers
                log.exception("an entry was not distributed")
                await asyncio.sleep(_RETRY_SECONDS)

    async def _read_once(self, redis: Redis) -> None:
        jobs = {events_key(job_id).encode(): job_id for job_id in self._last_revisions}
        since: Any = {key: f"{self._last_revisions[job_id]}-0" for key, job_id in jobs.items()}
        reply: Any = await redis.xread(since, block=_BLOCK_MS)
        for key, entries in _streams(reply):
            job_id = jobs[key]
            for entry_id, fields in entries:
                entry = EventEntry.parse(entry_id, fields)
                if job_id in self._last_revisions:
                    self._last_revisions[job_id] = entry.revision
                for number, subscription in enumerate(list(self._subscriptions.get(job_id, ())), 1):
                    subscription.entries.put_nowait(entry)
                    if number % _AT_ONCE == 0:
                        await asyncio.sleep(0)


def _streams(reply: Any) -> Iterator[tuple[bytes, list[tuple[bytes, dict[bytes, bytes]]]]]:
    """Return the reply to XREAD, of either version of Redis's protocol, as keys and entries."""
    if isinstance(reply, dict):
        for key, chunks in reply.items():
            yield key, [entry for chunk in chunks for entry in chunk]
    else:
        yield from reply or ()
