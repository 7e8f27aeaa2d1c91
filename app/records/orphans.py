"""Ledger of orphaned objects: prefixes of the store that no record owns, none yet, or none from some time on.

A process that is about to write under a prefix adds it first, with the time after which the write has surely ended, and
removes it in the transaction in which a record becomes its owner. Housekeeping deletes what is still in the ledger at
that time, so that a process may die at any moment and leave nothing behind.
"""

from typing import Any

from redis import Redis
from redis.client import Pipeline

from app.redis_client import execute_when_full, server_clock

LEDGER_KEY = "earmark:leftovers"


def postpone(redis: Redis, index: str, name: str, seconds: float) -> None:
    """Let a member of an index by due time be due again after some seconds, unless it was removed."""
    with redis.pipeline() as pipe:
        pipe.zadd(index, {name: server_clock(redis).now() + seconds}, xx=True)
        execute_when_full(redis, pipe)


class OrphanLedger:
    """The ledger of one deployment: prefixes of the store by due time."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._clock = server_clock(redis)

    def add(self, pipe: Pipeline | None, prefix: str, due: float) -> None:
        """Add a prefix, within a transaction or at once; of two times for one prefix the later counts."""
        if pipe is not None:
            pipe.zadd(LEDGER_KEY, {prefix: due}, gt=True)
            return
        with self._redis.pipeline() as single:
            single.zadd(LEDGER_KEY, {prefix: due}, gt=True)
            execute_when_full(self._redis, single)

    def add_missing(self, pipe: Pipeline, prefix: str, due: float) -> None:
        """Add a prefix within a transaction, unless it is due at some time already."""
        pipe.zadd(LEDGER_KEY, {prefix: due}, nx=True)

    def remove(self, pipe: Pipeline | None, prefix: str) -> None:
        """Remove a prefix: a record owns it, or its objects were deleted."""
        (self._redis if pipe is None else pipe).zrem(LEDGER_KEY, prefix)

    def postpone(self, prefix: str, seconds: float) -> None:
        """Let a prefix be due again after some seconds."""
        postpone(self._redis, LEDGER_KEY, prefix, seconds)

    def due(self, limit: int) -> list[str]:
        """Return prefixes that are due: delete their objects, then call `remove`."""
        members: Any = self._redis.zrange(LEDGER_KEY, 0, self._clock.now(), byscore=True, offset=0, num=limit)
        return [member.decode() for member in members]
