"""Responses by `Idempotency-Key`, in Redis: a claim while the first request is processed, then its response.

A claim is a lease that its holder renews, so that a dead process does not block repetitions for longer than the lease.
"""

import hashlib
import secrets
from typing import Any

from pydantic import BaseModel
from redis import Redis

from app.settings import Settings

_CLAIM = b"claim:"
# Only the holder of the claim may renew it, replace it by a response, or release it (an empty value).
_REPLACE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] == '' then return redis.call('DEL', KEYS[1]) end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
"""


class StoredResponse(BaseModel):
    """The first response, with the fingerprint and length in bytes of its request."""

    fingerprint: str
    bytes: int
    status: int
    headers: list[tuple[str, str]]
    body: str


class Claim:
    """The exclusive right to process the request of an `Idempotency-Key`."""

    def __init__(self, repository: "IdempotencyRepository", key: str, value: bytes) -> None:
        self._repository = repository
        self._key = key
        self._value = value

    def renew(self) -> None:
        """Extend the lease."""
        self._repository.replace(self._key, self._value, self._value)

    def store(self, response: StoredResponse) -> None:
        """Store the response for repetitions, unless the lease has expired and another request holds the claim."""
        self._repository.replace(self._key, self._value, response.model_dump_json().encode())

    def release(self) -> None:
        """Give up the claim without a response, so that the request may be retried."""
        self._repository.replace(self._key, self._value, b"")


class IdempotencyRepository:
    """The claims and responses of one deployment."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._redis = redis
        self._replace = redis.register_script(_REPLACE)
        self._lease = round(settings.idempotency_lease * 1000)
        self._retention = round(settings.idempotency_seconds * 1000)

    def claim(self, key_id: str, idempotency_key: str) -> Claim | StoredResponse | None:
        """Return a claim for the first request with this `Idempotency-Key` of an API key; for others the response to
        the first one, or None while there is none."""
        key = f"earmark:idempotency:{key_id}:{hashlib.sha256(idempotency_key.encode()).hexdigest()}"
        value = _CLAIM + secrets.token_hex(16).encode()
        previous: Any = self._redis.set(key, value, px=self._lease, nx=True, get=True)
        if previous is None or previous == value:  # ours: redis-py may have retried after a lost reply
            return Claim(self, key, value)
        return None if previous.startswith(_CLAIM) else StoredResponse.model_validate_json(previous)

    def replace(self, key: str, claim: bytes, value: bytes) -> None:
        """Replace a claim by another value, and set the time after which that expires."""
        milliseconds = self._lease if value.startswith(_CLAIM) else self._retention
        self._replace(keys=[key], args=[claim, value, milliseconds])
