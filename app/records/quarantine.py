"""Unreadable records are set aside: lists, recovery and expiry go on without them, and their owners can delete them.

Whoever reads such a record adds its name here: the key in Redis and, for a field of a hash, a space and the field. A
record that a newer release wrote (`RecordTooNew`) is not one of them: it is left alone.
"""

import logging
from typing import Any, TypeVar

from pydantic import BaseModel
from redis import Redis
from redis.exceptions import ResponseError

from app.errors import RecordTooNew, RecordUnreadable
from app.redis_client import execute_when_full, server_clock

log = logging.getLogger("earmark.records")

_NAMES = "earmark:unreadable"  # by the time at which they were found

Model = TypeVar("Model", bound=BaseModel)


class _Versioned(BaseModel):
    schema_version: int = 0


def parse_record(model: type[Model], document: bytes | str, schema: int | None = None) -> Model:
    """Return a record from its JSON; `schema`: the newest version that this release reads, if the kind has versions.

    Raises `RecordTooNew` and `RecordUnreadable`.
    """
    try:
        record = model.model_validate_json(document)
    except ValueError as error:
        if schema is not None and _version(document) > schema:
            raise RecordTooNew() from error
        raise RecordUnreadable() from error
    if schema is not None and getattr(record, "schema_version", schema) > schema:
        raise RecordTooNew()
    return record


def _version(document: bytes | str) -> int:
    """Return the schema version of a record that does not fit its model; 0 if it has none."""
    try:
        return _Versioned.model_validate_json(document).schema_version
    except ValueError:
        return 0


class Quarantine:
    """The unreadable records of one deployment, by name."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._clock = server_clock(redis)

    def get(self, key: str) -> Any:
        """Return the value of a key; None without one. Raises `RecordUnreadable` if it is not a text."""
        try:
            return self._redis.get(key)
        except ResponseError as error:
            if not str(error).startswith("WRONGTYPE"):
                raise
            raise RecordUnreadable() from error

    def add(self, name: str) -> None:
        """Add a record, which is logged when it is found for the first time."""
        with self._redis.pipeline() as pipe:
            pipe.zadd(_NAMES, {name: self._clock.now()}, nx=True)
            (added,) = execute_when_full(self._redis, pipe)
        if added:
            log.error("the record %s cannot be read and is set aside", name)

    def remove(self, name: str) -> None:
        """Remove a record that was deleted."""
        self._redis.zrem(_NAMES, name)

    def names(self) -> list[str]:
        """Return the names of all unreadable records, the oldest find first."""
        members: Any = self._redis.zrange(_NAMES, 0, -1)
        return [member.decode() for member in members]

    def count(self) -> int:
        """Return how many records are unreadable."""
        return self._redis.zcard(_NAMES)

    def trim(self) -> None:
        """Remove records that Redis has dropped meanwhile."""
        for name in self.names():
            key, _, field = name.partition(" ")
            if not (self._redis.hexists(key, field) if field else self._redis.exists(key)):
                self.remove(name)
