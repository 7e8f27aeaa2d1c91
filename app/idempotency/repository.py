"""Responses by `Idempotency-Key`, in Redis: a claim while the first request is processed, then its response.

A claim is a lease that its holder renews, so that a dead process does not block repetitions for longer than the lease.

What the responses of one API key take is bounded. A refusal created nothing, so a repetition may compute it again: it
is not stored where it is large, or where half of the bytes are used. Everything else must be stored, or a repetition
would create twice: so a key that has used all of its bytes gets no claim until the oldest of them expire.
"""

import hashlib
import secrets
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from redis import Redis

from app.errors import RateLimited, RecordUnreadable
from app.records.quarantine import Quarantine, parse_record
from app.settings import Settings

_CLAIM = b"claim:"
_OVERHEAD = 300  # bytes that Redis takes for an entry beside the response


class StoredResponse(BaseModel):
    """The first response, with the fingerprint and length in bytes of its request."""

    fingerprint: str
    bytes: int
    status: int
    headers: list[tuple[str, str]]
    body: str


class Claim:
    """The exclusive right to process the request of an `Idempotency-Key`."""

    def __init__(self, repository: "IdempotencyRepository", key_id: str, key: str, value: bytes) -> None:
        self._repository = repository
        self._key_id = key_id
        self._key = key
        self._value = value

    def renew(self) -> None:
        """Extend the lease."""
        self._repository.replace(self._key_id, self._key, self._value, self._value)

    def store(self, response: StoredResponse) -> None:
        """Store the response for repetitions, unless the lease has expired and another request holds the claim.

        A refusal for which there is no room is not stored, and the claim released.
        """
        value = response.model_dump_json().encode()
        self._repository.replace(self._key_id, self._key, self._value, value, is_refusal=response.status >= 400)

    def release(self) -> None:
        """Give up the claim without a response, so that the request may be retried."""
        self._repository.replace(self._key_id, self._key, self._value, b"")


class IdempotencyRepository:
    """The claims and responses of one deployment."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._redis = redis
        self._quarantine = Quarantine(redis)
        folder = Path(__file__).parent
        self._claim = redis.register_script((folder / "claim.lua").read_text())
        self._replace = redis.register_script((folder / "replace.lua").read_text())
        self._lease = round(settings.idempotency_lease * 1000)
        self._retention = round(settings.idempotency_seconds * 1000)
        self._limit = settings.idempotency_bytes
        self._refusal_limit = settings.idempotency_refusal_bytes

    def claim(self, key_id: str, idempotency_key: str) -> Claim | StoredResponse | None:
        """Return a claim for the first request with this `Idempotency-Key` of an API key; for others the response to
        the first one, or None while there is none.

        Raises `RateLimited` if the API key has used up its bytes, and `RecordUnreadable` for a damaged response: the
        first request may have created something.
        """
        key = _response_key(key_id, idempotency_key)
        value = _CLAIM + secrets.token_hex(16).encode()
        keys = [key, _bytes_key(key_id)]
        reply: Any = self._claim(keys=keys, args=[value, self._lease, self._retention, self._limit])
        previous, wait = reply
        if previous == value:  # ours, though redis-py may have retried after a lost reply
            return Claim(self, key_id, key, value)
        if previous is None:
            detail = f"The responses kept for the Idempotency-Keys of an API key may take {self._limit} bytes."
            raise RateLimited(detail, wait)
        if previous.startswith(_CLAIM):
            return None
        try:
            return parse_record(StoredResponse, previous)
        except RecordUnreadable:
            self._quarantine.add(key)
            raise RecordUnreadable("The response to the first request with this Idempotency-Key is damaged.") from None

    def holds(self, key_id: str, idempotency_key: str) -> bool:
        """Whether there is a claim or a response."""
        return bool(self._redis.exists(_response_key(key_id, idempotency_key)))

    def replace(self, key_id: str, key: str, claim: bytes, value: bytes, is_refusal: bool = False) -> None:
        """Replace a claim by another value, and set the time after which that expires; an empty value removes it."""
        is_response = bool(value) and not value.startswith(_CLAIM)
        size = len(value) + _OVERHEAD if is_response else 0
        limit = self._limit // 2 if is_refusal else 0
        if is_refusal and len(value) > self._refusal_limit:
            value, size = b"", 0
        milliseconds = self._retention if is_response else self._lease
        self._replace(keys=[key, _bytes_key(key_id)], args=[claim, value, milliseconds, size, limit])


def _response_key(key_id: str, idempotency_key: str) -> str:
    return f"earmark:idempotency:{key_id}:{hashlib.sha256(idempotency_key.encode()).hexdigest()}"


def _bytes_key(key_id: str) -> str:
    return f"earmark:idempotency-bytes:{key_id}"
