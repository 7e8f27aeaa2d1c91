"""Memory of the Redis server, which records share: new ones are refused well before the server itself refuses writes.

The rest is for what was accepted before: workers finish and publish, housekeeping expires, clients poll and delete.
"""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from app.errors import Overloaded

_FRESH_SECONDS = 1.0  # of a reading: what a second adds is small beside the room that is kept


@dataclass(frozen=True)
class MemoryReading:
    """The reply to INFO memory, in bytes; a limit of 0 is none. `evicts`: a full server drops records of its choice."""

    used: int
    limit: int
    evicts: bool = False

    @classmethod
    def parse(cls, reply: Mapping[str, Any]) -> "MemoryReading":
        """Return what counts for `maxmemory`: buffers of replicas and of the append-only file do not."""
        limit = int(reply["maxmemory"])
        evicts = bool(limit) and reply.get("maxmemory_policy", "noeviction") != "noeviction"
        return cls(int(reply["used_memory"]) - int(reply.get("mem_not_counted_for_evict", 0)), limit, evicts)


class RedisMemory:
    """The budget of all records in bytes of the server's memory; for use from the event loop of the server only.

    `share`: of the server's `maxmemory`, above which nothing is added. A server without a limit refuses nothing. The
    metrics of it are the queue's, which are read at each scrape: the reading here is as old as the last request.
    """

    name = "redis_memory"

    def __init__(self, redis: Redis, share: float) -> None:
        self._redis = redis
        self._share = share
        self._reading = MemoryReading(0, 0)
        self._stale_at = 0.0
        self._lock = asyncio.Lock()
        self.refused: Counter[str] = Counter()  # by scope: `all`

    @property
    def total(self) -> float:
        """Bytes that may be used; infinite without a limit."""
        return self._reading.limit * self._share or math.inf

    @property
    def used(self) -> float:
        """Bytes in use at the last reading."""
        return self._reading.used

    async def require_room(self) -> None:
        """Require that records may be added. Raises `Overloaded`, and redis-py's errors.

        Reads the server's memory at most once a second.
        """
        if time.monotonic() >= self._stale_at:
            async with self._lock:
                if time.monotonic() >= self._stale_at:
                    self._reading = MemoryReading.parse(await self._redis.info("memory"))
                    self._stale_at = time.monotonic() + _FRESH_SECONDS
        if self.used >= self.total:
            self.refused["all"] += 1
            raise Overloaded("The server's memory for records is full; try again later, or delete what is not needed.")
