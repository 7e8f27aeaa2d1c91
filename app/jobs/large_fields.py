"""Large fields of job records, which are kept in the object store, so that records in Redis stay small.

A record and each of its events is meant to take at most 20 KB. Two groups of fields may be larger, and become one JSON
object each:

* what its creation fixes: request, metadata, webhook and the ids of its uploads;
* its outcome: targets, result and warnings (thousands of events of a detection).

The record refers to them (`Job.stored_fields`). The objects are under `records/ID`, since they stay as long as the
record does, longer than stems. An object is in the ledger of orphans from before its write until the transaction that
makes a record refer to it; the whole prefix is in it from the end of the job, due when Redis has dropped the record.
"""

import json
import logging
from contextlib import suppress
from typing import Any

from redis import Redis

from app.errors import NotFound, RecordUnreadable, StoreUnavailable
from app.jobs.lifecycle import Job, StoredFields, TargetState, add_stored_fields, without_stored_outcome
from app.jobs.listing import record_key
from app.records.orphans import OrphanLedger
from app.redis_client import server_clock
from app.settings import Settings
from app.storage import Storage

log = logging.getLogger("earmark.jobs")

# Bytes of JSON above which fields are stored. A waiting record needs room for the errors of its targets.
_CREATED_BYTES = 8 * 1024
_FINISHED_BYTES = 16 * 1024
_AMENDED_BYTES = 8 * 1024  # a saved query has an event for each model that has embedded it
_CREATION = ["request", "metadata", "webhook", "audio_ids"]
_OUTCOME = ["targets", "result", "warnings"]
_CREATION_SECONDS = 600.0  # after which a request that creates a job has surely ended


def record_folder(job_id: str) -> str:
    """Return the prefix in the store of a record's large fields."""
    return f"records/{job_id}"


class LargeFields:
    """The large fields of one deployment's records. All methods but `fill` block."""

    def __init__(self, redis: Redis, storage: Storage, settings: Settings) -> None:
        self._redis = redis
        self._clock = server_clock(redis)
        self._storage = storage
        self._settings = settings
        self._orphans = OrphanLedger(redis)

    def store_request(self, job: Job) -> Job:
        """Store the large fields of a new job, if it has any; return the job to create. Raises `StoreUnavailable`."""
        if len(job.document().encode()) <= _CREATED_BYTES:
            return job
        stored = StoredFields(key=f"{record_folder(job.id)}/request.json", names=_CREATION)
        self._store(job, stored, _CREATION_SECONDS)
        return add_stored_fields(job, stored)

    def discard_request(self, job: Job) -> None:
        """Delete the stored fields of a job that was not created; housekeeping does if the store does not answer."""
        with suppress(StoreUnavailable):
            for stored in job.stored_fields:
                self._storage.delete(stored.key)
                self._orphans.remove(None, stored.key)

    def store_outcome(
        self, job: Job, execution: str, targets: list[TargetState], result: dict[str, Any], warnings: list[str]
    ) -> StoredFields | None:
        """Store a job's outcome if it is large, to be published with it, or in place of the one that it has.

        Raises `StoreUnavailable`.
        """
        outcome = {"targets": targets, "result": result, "warnings": warnings}
        finished = without_stored_outcome(job).model_copy(update=outcome)
        if len(finished.document().encode()) <= (_AMENDED_BYTES if job.is_finished else _FINISHED_BYTES):
            return None
        stored = StoredFields(key=f"{record_folder(job.id)}/{execution}.json", names=_OUTCOME)
        self._store(finished, stored, self._settings.execution_seconds)
        return stored

    def load(self, job: Job) -> Job:
        """Return the complete job. Raises `StoreUnavailable`, and `NotFound` if it was deleted meanwhile."""
        if not job.is_partial:
            return job
        try:
            return self.fill(job, [self._storage.get(stored.key) for stored in job.stored_fields])
        except NotFound as error:
            raise self.explain_missing(job) from error

    @staticmethod
    def fill(job: Job, contents: list[bytes]) -> Job:
        """Return the complete job from the contents of its objects, in the order of its stored fields.

        Raises `RecordUnreadable` if they are damaged.
        """
        try:
            fields = {name: value for content in contents for name, value in json.loads(content).items()}
            return Job.model_validate({**dict(job), **fields, "is_partial": False})
        except (ValueError, AttributeError, RecursionError) as error:  # not JSON, not an object, or nested
            raise RecordUnreadable() from error

    def explain_missing(self, job: Job) -> NotFound | StoreUnavailable:
        """Return the error to raise where the store has not got a job's large fields."""
        if not self._redis.exists(record_key(job.id)):
            return NotFound("There is no such job.")
        log.error("the store has lost large fields of %s", job.id)
        return StoreUnavailable("The store has lost a part of this job.")

    def _store(self, job: Job, stored: StoredFields, seconds: float) -> None:
        """Write the fields, which the ledger of orphans lists until a record refers to them, or for some seconds."""
        self._orphans.add(None, stored.key, self._clock.now() + seconds)
        self._storage.put(stored.key, job.model_dump_json(include=set(stored.names)).encode())
