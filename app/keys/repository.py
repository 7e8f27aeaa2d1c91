"""API keys as Redis keeps them: never the key itself, only its SHA-256.

A key is `emk_ULID_SECRET`: its id is `key_ULID`, and its secret has 256 random bits, so that a plain digest of it tells
nothing. All records are in one hash by id; the script that admits requests reads them there (`admission.lua`).
"""

import base64
import hashlib
import re
import secrets
import time
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from redis import Redis

from app.errors import NotFound
from app.records import ids

KEYS_KEY = "earmark:keys"
_KEY = re.compile(r"emk_([0-7][0-9A-HJKMNP-TV-Z]{25})_[A-Za-z0-9_-]{43}")


class Key(BaseModel):
    """One key. A rate or a quota of 0 is none; the priority is its weight in the line beside other keys'."""

    model_config = ConfigDict(extra="ignore")

    schema_version: int = 1
    id: str
    name: str
    digest: str = Field(repr=False)
    rate: int  # requests a minute
    audio_seconds: int  # of mixtures, a day
    priority: int
    webhook_secret: str = Field(repr=False)  # as Standard Webhooks writes it; signing needs it as it is
    created_at: float


def key_id(written: str) -> str | None:
    """The id of a key as clients send it; None for what cannot be one."""
    match = _KEY.fullmatch(written)
    return f"{ids.KEY}_{match[1]}" if match else None


def digest(written: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(written.encode()).hexdigest()


class KeyRepository:
    """All keys of one deployment."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def create(self, name: str, rate: int, audio_seconds: int, priority: int) -> tuple[Key, str]:
        """A new key: its record, and the key itself, which nobody can read again."""
        made = ids.new_id(ids.KEY)
        written = f"emk_{made.removeprefix(f'{ids.KEY}_')}_{secrets.token_urlsafe(32)}"
        key = Key(
            id=made,
            name=name,
            digest=digest(written),
            rate=rate,
            audio_seconds=audio_seconds,
            priority=priority,
            webhook_secret=f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}",
            created_at=time.time(),
        )
        self._redis.hset(KEYS_KEY, key.id, key.model_dump_json())
        return key, written

    def list(self) -> list[Key]:
        """Every key that opens something, the oldest first."""
        found: Any = self._redis.hvals(KEYS_KEY)
        return sorted((Key.model_validate_json(document) for document in found), key=lambda key: key.id)

    def get(self, key_id: str) -> Key:
        """One key; raises `NotFound` for one that was revoked or never made."""
        document: Any = self._redis.hget(KEYS_KEY, key_id)
        if document is None:
            raise NotFound("There is no such key.")
        return Key.model_validate_json(document)

    def revoke(self, key_id: str) -> None:
        """Let a key open nothing from now on, and addresses that were signed for it neither. Raises `NotFound`."""
        if not self._redis.hdel(KEYS_KEY, key_id):
            raise NotFound("There is no such key.")
