"""A record's events: one entry of its Redis stream for every revision, written with the change that it tells.

Entry ids are `1-0`, `2-0`, ...; fields are `type` (`state`, `progress`, `target`) and `job`, JSON of what changed: the
progress alone, or the whole record but its request and its webhook. `Unfolding` makes whole records of them again.
"""

import json
from dataclasses import dataclass
from typing import Any

from redis import Redis
from redis.client import Pipeline

from app.jobs import lifecycle
from app.jobs.lifecycle import Job, Progress

DELETED = "deleted"  # the last entry of a record that was deleted; not an event that clients are told
_PRIVATE_FIELDS = {"request", "webhook"}
_DELETED_SECONDS = 60  # the last entry is kept for those who read the stream at that time


def events_key(job_id: str) -> str:
    """The Redis key of a record's stream of events."""
    return f"earmark:job:{job_id}:events"


@dataclass(frozen=True)
class EventEntry:
    """An entry: the record's revision, what kind of change made it, and JSON of what changed."""

    revision: int
    type: str
    job: bytes

    @classmethod
    def parse(cls, number: bytes, fields: dict[bytes, bytes]) -> "EventEntry":
        """An entry as Redis tells it."""
        return cls(int(number.partition(b"-")[0]), fields[b"type"].decode(), fields.get(b"job", b""))


def append(pipe: Pipeline, job: Job, event: str) -> None:
    """Write the entry of this revision."""
    told = job.model_dump_json(include={"progress"} if event == "progress" else None, exclude=_PRIVATE_FIELDS)
    pipe.xadd(events_key(job.id), {"type": event, "job": told}, id=f"{job.revision}-0")


def delete(pipe: Pipeline, job: Job) -> None:
    """Take all entries away, and tell those who follow that the record is gone."""
    key = events_key(job.id)
    pipe.delete(key)
    pipe.xadd(key, {"type": DELETED}, id=f"{job.revision + 1}-0")
    pipe.expire(key, _DELETED_SECONDS)


def read_all(redis: Redis, job_id: str) -> list[EventEntry]:
    """All entries so far, the oldest first."""
    found: Any = redis.xrange(events_key(job_id))
    return [EventEntry.parse(number, fields) for number, fields in found]


class RecordReplay:
    """The record as it was after each entry, if it is given all of them, the oldest first."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def apply(self, entry: EventEntry) -> Job:
        """The record after the next entry. Raises `RecordTooNew` if a newer release wrote it."""
        changed = json.loads(entry.job)
        if entry.type == "progress":
            update = {"progress": Progress.model_validate(changed["progress"]), "revision": entry.revision}
            self._job = self._job.model_copy(update=update)
        else:
            self._job = lifecycle.from_fields(changed | {"request": self._job.request})
        return self._job
