"""What happens to jobs, as it happens, for all who wait for it in one process of the front end.

However many follow: one connection to Redis reads the streams of all jobs that anybody follows, and nobody holds a
thread. An entry reaches its followers within milliseconds; one of a job that nobody followed before, within
`_BLOCK_MS`. While Redis is away followers wait on, and miss nothing: streams are read on from where they were.
"""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from app.jobs.events import EventEntry, events_key
from app.redis_client import connect_async
from app.settings import Settings

log = logging.getLogger("earmark.feed")

_BLOCK_MS = 200  # one read waits so long for news: what following a further job may add to its first entry
_RETRY_SECONDS = 0.5  # between two tries while Redis does not answer


class Subscription:
    """Gets one job's entries. `begin` says from where; until then none is missed."""

    def __init__(self, feed: "EventFeed", job_id: str) -> None:
        self._feed = feed
        self.job_id = job_id
        self.news: asyncio.Queue[EventEntry | None] = asyncio.Queue()  # None: no more will come
        self._after = 0

    def start(self, after: int) -> None:
        """Entries of revisions above this one are news."""
        self._after = max(self._after, after)
        self._feed.start_reading(self.job_id, after)

    async def next(self, seconds: float) -> list[EventEntry]:
        """What is new, as soon as there is something; empty after so many seconds, and when the feed ends."""
        try:
            async with asyncio.timeout(seconds):
                arrived = [await self.news.get()]
        except TimeoutError:
            return []
        while not self.news.empty():
            arrived.append(self.news.get_nowait())
        new = [entry for entry in arrived if entry is not None and entry.revision > self._after]
        if new:
            self._after = new[-1].revision
        return new


class EventFeed:
    """All followers of one process; its methods are called from the event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._followers: dict[str, set[Subscription]] = {}
        self._read_to: dict[str, int] = {}  # by job: the revision up to which its followers have been told
        self._reader: asyncio.Task[None] | None = None
        self.ended = False

    @contextmanager
    def subscribe(self, job_id: str) -> Iterator[Subscription]:
        """A follower of one job, for as long as the context lasts."""
        follower = Subscription(self, job_id)
        if self.ended:
            follower.news.put_nowait(None)
        self._followers.setdefault(job_id, set()).add(follower)
        try:
            yield follower
        finally:
            others = self._followers[job_id]
            others.discard(follower)
            if not others:
                del self._followers[job_id]
                self._read_to.pop(job_id, None)

    def start_reading(self, job_id: str, after: int) -> None:
        """Read the job's stream from there, unless it is read already."""
        self._read_to.setdefault(job_id, after)
        if self._reader is None or self._reader.done():
            self._reader = asyncio.create_task(self._read())

    def end(self) -> None:
        """Nobody gets anything more: the server stops, and would otherwise wait for those who follow."""
        self.ended = True
        for followers in self._followers.values():
            for follower in followers:
                follower.news.put_nowait(None)

    async def close(self) -> None:
        """End, and let go of the connection."""
        self.end()
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)

    async def _read(self) -> None:
        """Hand out entries for as long as somebody follows."""
        async with connect_async(self._settings) as redis:
            while self._read_to and not self.ended:
                try:
                    await self._read_once(redis)
                except (RedisError, OSError) as error:
                    log.error("the queue's server does not answer: %s", error)
                    await asyncio.sleep(_RETRY_SECONDS)
                except Exception:  # a defect must not leave everybody waiting for nothing
                    log.exception("an entry was not handed out")
                    await asyncio.sleep(_RETRY_SECONDS)

    async def _read_once(self, redis: Redis) -> None:
        jobs = {events_key(job_id).encode(): job_id for job_id in self._read_to}
        since: Any = {key: f"{self._read_to[job_id]}-0" for key, job_id in jobs.items()}
        found: Any = await redis.xread(since, block=_BLOCK_MS)
        for key, entries in _streams(found):
            job_id = jobs[key]
            for number, fields in entries:
                entry = EventEntry.parse(number, fields)
                if job_id in self._read_to:
                    self._read_to[job_id] = entry.revision
                for follower in self._followers.get(job_id, ()):
                    follower.news.put_nowait(entry)


def _streams(found: Any) -> Iterator[tuple[bytes, list[tuple[bytes, dict[bytes, bytes]]]]]:
    """The answer to XREAD, of either version of Redis's protocol."""
    if isinstance(found, dict):
        for key, chunks in found.items():
            yield key, [entry for chunk in chunks for entry in chunk]
    else:
        yield from found or ()
