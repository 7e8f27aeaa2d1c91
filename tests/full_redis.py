"""A Redis server of which a given share of `maxmemory` is in use, by a change of its configuration."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from redis import Redis

FULL = 2.0  # far above `maxmemory`: commands that might take memory are refused


@contextmanager
def memory_in_use(redis: Redis, share: float) -> Iterator[None]:
    """Set the server's limit so that `share` of it is in use inside the context; it has none outside."""
    memory: Any = redis.info("memory")
    redis.config_set("maxmemory", int(memory["used_memory"] / share))
    try:
        yield
    finally:
        redis.config_set("maxmemory", 0)
