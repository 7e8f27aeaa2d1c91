"""Records of API keys in Redis, which hold the SHA-256 of a key and never the key itself.

A key is `emk_ULID_SECRET`: its id is `key_ULID`, and its secret has 256 random bits, so that a plain digest does not
reveal it. One hash holds all records by id; the authentication script (`middleware.lua`) reads them there.
"""

import base64
import builtins
import hashlib
import re
import secrets
from contextlib import suppress
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from redis import Redis

from app.errors import NotFound, RecordTooNew, RecordUnreadable
from app.records import ids
from app.records.quarantine import Quarantine, parse_record
from app.redis_client import server_clock

SCHEMA: Literal[1] = 1
KEYS_KEY = "earmark:keys"
_KEY = re.compile(r"emk_([0-7][0-9A-HJKMNP-TV-Z]{25})_[A-Za-z0-9_-]{43}")


class Key(BaseModel):
    """Record of a key. A rate or quota of 0 is no limit; the priority is the key's weight in the fair queue."""

    model_config = ConfigDict(extra="ignore")

    schema_version: int = SCHEMA
    id: str
    name: str
    digest: str = Field(repr=False)
    rate: int  # requests a minute
    audio_seconds: int  # a day
    priority: int
    webhook_secret: str = Field(repr=False)  # in the format of Standard Webhooks; signing needs the secret itself
    created_at: float


def parse_key_id(api_key: str) -> str | None:
    """Return the id of a key as clients send it; None if it is malformed."""
    match = _KEY.fullmatch(api_key)
    return f"{ids.KEY}_{match[1]}" if match else None


def digest(api_key: str) -> str:
    """Return the digest that the record of a key holds."""
    return hashlib.sha256(api_key.encode()).hexdigest()


def new_webhook_secret() -> str:
    """Return a new secret that signs webhooks."""
    return f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}"


class KeyRepository:
    """The keys of one deployment."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._clock = server_clock(redis)
        self._quarantine = Quarantine(redis)

    def create(self, name: str, rate: int, audio_seconds: int, priority: int) -> tuple[Key, str]:
        """Create a key; return its record, and the key itself, which is not stored."""
        now = self._clock.now()
        key_id = ids.new_id(ids.KEY, now)
        api_key = f"emk_{key_id.removeprefix(f'{ids.KEY}_')}_{secrets.token_urlsafe(32)}"
        key = Key(
            id=key_id,
            name=name,
            digest=digest(api_key),
            rate=rate,
            audio_seconds=audio_seconds,
            priority=priority,
            webhook_secret=new_webhook_secret(),
            created_at=now,
        )
        self._redis.hset(KEYS_KEY, key.id, key.model_dump_json())
        return key, api_key

    def add(self, key: Key) -> bool:
        """Add a key from an export; return False, and change nothing, if its id is there already."""
        return bool(self._redis.hsetnx(KEYS_KEY, key.id, key.model_dump_json()))

    def list(self) -> list[Key]:
        """Return all valid keys, the oldest first; those whose records are unreadable are left out."""
        documents: Any = self._redis.hgetall(KEYS_KEY)
        keys = []
        for key_id, document in documents.items():
            with suppress(RecordUnreadable, RecordTooNew):
                keys.append(self._parse(key_id.decode(), document))
        return sorted(keys, key=lambda key: key.id)

    def unreadable_ids(self) -> builtins.list[str]:
        """Return the ids of keys whose records `list` found unreadable; nobody can use them."""
        names = [name.partition(" ") for name in self._quarantine.names()]
        return [field for key, _, field in names if key == KEYS_KEY]

    def get(self, key_id: str) -> Key:
        """Return a key. Raises `NotFound` for a key that is revoked or unknown, `RecordUnreadable`, `RecordTooNew`."""
        document: Any = self._redis.hget(KEYS_KEY, key_id)
        if document is None:
            raise NotFound("There is no such key.")
        return self._parse(key_id, document)

    def revoke(self, key_id: str) -> None:
        """Invalidate a key at once, readable or not, and the URLs signed for it. Raises `NotFound`."""
        if not self._redis.hdel(KEYS_KEY, key_id):
            raise NotFound("There is no such key.")
        self._quarantine.remove(f"{KEYS_KEY} {key_id}")

    def _parse(self, key_id: str, document: bytes) -> Key:
        try:
            return parse_record(Key, document, SCHEMA)
        except RecordUnreadable:
            self._quarantine.add(f"{KEYS_KEY} {key_id}")
            raise
