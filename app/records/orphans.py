"""A ledger of what may be left in the store with no record that owns it.

Whoever is about to write under a prefix enters it first, with the time after which nobody can still be writing, and
strikes it out in the same transaction that makes a record own it. What is still entered when its time has come is
deleted by housekeeping, so that a process may die at any moment and leave nothing for ever.
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
        """Enter a prefix, within a transaction or at once; entered again, the later time counts."""
        (self._redis if pipe is None else pipe).zadd(_LEDGER, {prefix: due}, gt=True)

    def remove(self, pipe: Pipeline | None, prefix: str) -> None:
        """Strike a prefix out: a record owns it now, or it was deleted."""
        (self._redis if pipe is None else pipe).zrem(_LEDGER, prefix)

    def postpone(self, prefix: str, seconds: float) -> None:
        """Look at a prefix again later."""
        self._redis.zadd(_LEDGER, {prefix: time.time() + seconds}, xx=True)

    def due(self, limit: int) -> list[str]:
        """Prefixes whose time has come. Delete what is there, then `settle`."""
        found: Any = self._redis.zrange(_LEDGER, 0, time.time(), byscore=True, offset=0, num=limit)
        return [member.decode() for member in found]
