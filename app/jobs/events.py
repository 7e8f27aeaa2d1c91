"""Events of a record: its Redis stream has one entry per revision, written in the transaction of the change.

Entry ids are `1-0`, `2-0`, ...; fields are `type` (`state`, `progress`, `target`) and `job`, JSON of what changed: the
progress alone, the changed targets alone, or the whole record without its request and its webhook, and after its expiry
without its result; large fields are referred to, as in the record. `RecordReplay` restores the records.
"""

import json
import logging
from dataclasses import dataclass
from typing import Any

from redis import Redis
from redis.client import Pipeline

from app.errors import RecordUnreadable
from app.jobs import lifecycle
from app.jobs.lifecycle import Job, Progress, TargetState

log = logging.getLogger("earmark.jobs")

DELETED = "deleted"  # the last entry of a deleted record; it is not sent to clients
PROGRESS = "progress"  # the progress alone has changed
_PRIVATE_FIELDS = {"request", "webhook"}
_CHANGED_FIELDS = {PROGRESS: {"progress"}, "target": {"targets", "changed_at"}}  # by event; others: all
_DELETED_SECONDS = 60  # how long the last entry is kept for subscribers


def events_key(job_id: str) -> str:
    """Return the Redis key of a record's stream of events."""
    return f"earmark:job:{job_id}:events"


@dataclass(frozen=True, eq=False)  # entries of two jobs may be equal
class EventEntry:
    """An entry: the record's revision, the kind of change that made it, and JSON of what changed."""

    revision: int
    type: str
    job: bytes

    @classmethod
    def parse(cls, number: bytes, fields: dict[bytes, bytes]) -> "EventEntry":
        """Return an entry from Redis's reply."""
        kind = fields.get(b"type", b"").decode(errors="replace")
        return cls(int(number.partition(b"-")[0]), kind, fields.get(b"job", b""))


def append(pipe: Pipeline, job: Job, event: str, before: Job | None) -> None:
    """Write the entry of the record's revision, within a transaction. before: the record before the change."""
    if event == "target" and before is not None:
        job = job.model_copy(update={"targets": [state for state in job.targets if state not in before.targets]})
    unchanged = _PRIVATE_FIELDS | {"result"} if job.expired else _PRIVATE_FIELDS
    document = job.document(include=_CHANGED_FIELDS.get(event), exclude=unchanged)
    pipe.xadd(events_key(job.id), {"type": event, "job": document}, id=f"{job.revision}-0")


def delete(pipe: Pipeline, job: Job) -> None:
    """Delete all entries, and tell subscribers with a last one, within a transaction."""
    key = events_key(job.id)
    pipe.delete(key)
    pipe.xadd(key, {"type": DELETED}, id=f"{job.revision + 1}-0")
    pipe.expire(key, _DELETED_SECONDS)


def read_all(redis: Redis, job_id: str) -> list[EventEntry]:
    """Return all entries so far, the oldest first."""
    reply: Any = redis.xrange(events_key(job_id))
    return [EventEntry.parse(number, fields) for number, fields in reply]


class RecordReplay:
    """Restores the record as it was after each entry; to be given all entries in order, and the record itself."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def apply(self, entry: EventEntry) -> Job:
        """Return the record after the next entry; after a damaged one, the record before it.

        Raises `RecordTooNew` if a newer release wrote it.
        """
        try:
            self._job = self._restore(entry)
        except (RecordUnreadable, ValueError, LookupError, TypeError):
            log.error("event %d of %s cannot be read", entry.revision, self._job.id)
        return self._job

    def _restore(self, entry: EventEntry) -> Job:
        changed = json.loads(entry.job)
        if entry.type == PROGRESS:
            update = {"progress": Progress.model_validate(changed["progress"]), "revision": entry.revision}
            return self._job.model_copy(update=update)
        if entry.type == "target" and "id" not in changed:  # earlier releases wrote the whole record
            states = {fields["name"]: TargetState.model_validate(fields) for fields in changed["targets"]}
            targets = [states.get(target.name, target) for target in self._job.targets]
            update = {"targets": targets, "changed_at": changed["changed_at"], "revision": entry.revision}
            return self._job.model_copy(update=update)
        return lifecycle.from_fields({"result": self._job.result} | changed | {"request": self._job.request})
