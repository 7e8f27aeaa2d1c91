"""Ledger of orphaned objects: prefixes of the store that no record owns, none yet, or none from some time on.

A process that is about to write under a prefix adds it first, with the time after which the write has surely ended, and
removes it in the transaction in which a record becomes its owner. Housekeeping deletes what is still in the ledger at
that time, so that a process may die at any moment and leave nothing behind.
"""

import time
from typing import Any

from redis import Redis
from redis.client import Pipeline

_LEDGER = "earmark:leftovers"


class OrphanLedger:
    """The ledger of one deployment: prefixes of the store by due time."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def add(self, pipe: Pipeline | None, prefix: str, due: float) -> None:
        """Add a prefix, within a transaction or at once; of two times for one prefix the later counts."""
        (self._redis if pipe is None else pipe).zadd(_LEDGER, {prefix: due}, gt=True)

    def remove(self, pipe: Pipeline | None, prefix: str) -> None:
        """Remove a prefix: a record owns it, or its objects were deleted."""
        (self._redis if pipe is None else pipe).zrem(_LEDGER, prefix)

    def postpone(self, prefix: str, seconds: float) -> None:
        """Let a prefix be due again after some seconds."""
        self._redis.zadd(_LEDGER, {prefix: time.time() + seconds}, xx=True)

    def due(self, limit: int) -> list[str]:
        """Return prefixes that are due: delete their objects, then call `remove`."""
        members: Any = self._redis.zrange(_LEDGER, 0, time.time(), byscore=True, offset=0, num=limit)
        return [member.decode() for member in members]
