"""Bytes of the excerpts that saved queries keep in the store, counted for each API key until a query is deleted.

Each owner has a hash: the bytes of its queries by id, and their `total`. It changes in the transactions in which a
record gets its excerpts, and in which it is deleted.
"""

from redis import Redis
from redis.client import Pipeline

from app.errors import QuotaExceeded
from app.jobs.lifecycle import Job
from app.settings import Settings

_TOTAL = "total"  # no id
_RETRY_AFTER = 3600  # s; saved queries stay until they are deleted
_FORGET = """#!lua flags=allow-oom
local bytes = redis.call('HGET', KEYS[1], ARGV[1])
if bytes then
  redis.call('HDEL', KEYS[1], ARGV[1])
  redis.call('HINCRBY', KEYS[1], 'total', -bytes)
end
"""


class ExcerptBytes:
    """The counts of one deployment."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._redis = redis
        self._limit = settings.excerpt_bytes
        self._forget = redis.register_script(_FORGET)

    def total(self, owner: str) -> int:
        """Return the bytes that an owner's saved queries keep."""
        return int(self._redis.hget(_key(owner), _TOTAL) or 0)  # pyright: ignore[reportArgumentType]

    def require_room(self, owner: str, more: int = 1) -> None:
        """Require that an API key may keep so many more bytes; concurrent calls may exceed that a little.

        Raises `QuotaExceeded`.
        """
        if owner and self.total(owner) + more > self._limit:
            detail = f"Saved queries may keep {self._limit} bytes of their examples: delete some of them."
            raise QuotaExceeded(detail, _RETRY_AFTER)

    @staticmethod
    def add(pipe: Pipeline, job: Job) -> None:
        """Count the excerpts of a record, within its transaction."""
        if job.excerpt_bytes:
            pipe.hset(_key(job.owner), job.id, str(job.excerpt_bytes))
            pipe.hincrby(_key(job.owner), _TOTAL, job.excerpt_bytes)

    @staticmethod
    def remove(pipe: Pipeline, job: Job) -> None:
        """Count the excerpts of a deleted record no more, within its transaction."""
        if job.excerpt_bytes:
            pipe.hdel(_key(job.owner), job.id)
            pipe.hincrby(_key(job.owner), _TOTAL, -job.excerpt_bytes)

    def forget(self, owner: str, job_id: str) -> None:
        """Count a record's excerpts no more, once, where the record does not tell how many bytes they have."""
        self._forget(keys=[_key(owner)], args=[job_id])


def _key(owner: str) -> str:
    return f"earmark:excerpts:{owner}"
