"""Answers by `Idempotency-Key`, in Redis: a claim while the first request runs, then its answer.

A claim is a lease that its holder renews, so that a process that dies blocks nobody for longer than that.
"""

import hashlib
import secrets
from typing import Any

from pydantic import BaseModel
from redis import Redis

from app.settings import Settings

_CLAIM = b"claim:"
# Only whoever holds the claim may renew it, make an answer of it, or give it up (an empty value).
_REPLACE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] == '' then return redis.call('DEL', KEYS[1]) end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
"""


class StoredResponse(BaseModel):
    """The first answer, and the fingerprint and length in bytes of the request that it belongs to."""

    fingerprint: str
    bytes: int
    status: int
    headers: list[tuple[str, str]]
    body: str


class Claim:
    """The right to answer one `Idempotency-Key` first."""

    def __init__(self, records: "IdempotencyRepository", key: str, value: bytes) -> None:
        self._records = records
        self._key = key
        self._value = value

    def renew(self) -> None:
        """The request still runs."""
        self._records.replace(self._key, self._value, self._value)

    def store(self, answer: StoredResponse) -> None:
        """Keep the answer for repetitions; too late if the lease ran out and another request has the claim."""
        self._records.replace(self._key, self._value, answer.model_dump_json().encode())

    def release(self) -> None:
        """Nothing to repeat: the request may be tried again."""
        self._records.replace(self._key, self._value, b"")


class IdempotencyRepository:
    """All claims and answers of one deployment."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._redis = redis
        self._replace = redis.register_script(_REPLACE)
        self._lease = round(settings.idempotency_lease * 1000)
        self._kept = round(settings.idempotency_seconds * 1000)

    def claim(self, key_id: str, sent: str) -> Claim | StoredResponse | None:
        """The claim, if this is the first request with what an API key's holder sent as `Idempotency-Key`; else the
        first one's answer, or None while it has none."""
        key = f"earmark:idempotency:{key_id}:{hashlib.sha256(sent.encode()).hexdigest()}"
        value = _CLAIM + secrets.token_hex(16).encode()
        found: Any = self._redis.set(key, value, px=self._lease, nx=True, get=True)
        if found is None or found == value:  # ours: the answer to our first try may have been lost
            return Claim(self, key, value)
        return None if found.startswith(_CLAIM) else StoredResponse.model_validate_json(found)

    def replace(self, key: str, held: bytes, value: bytes) -> None:
        """Put another value in a claim's place, for as long as such values are kept."""
        milliseconds = self._lease if value.startswith(_CLAIM) else self._kept
        self._replace(keys=[key], args=[held, value, milliseconds])
