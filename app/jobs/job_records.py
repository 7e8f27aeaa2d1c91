"""Job records in Redis as such: read, written with all that follows from their state, and changed by compare-and-set.

A change is a step of the life cycle (`lifecycle.py`), tried again on the new record if another process was first. It is
one transaction (`FairQueue.commit`) of the record, its event (`events.py`), the indices, and the webhook of a job that
has finished.
"""

import hashlib
from collections.abc import Callable
from typing import Any

from redis import Redis
from redis.client import Pipeline

from app.errors import NotFound, RecordUnreadable
from app.jobs import events, lifecycle, metrics
from app.jobs.events import events_key
from app.jobs.fair_queue import Condition, FairQueue
from app.jobs.kinds import KINDS
from app.jobs.large_fields import record_folder
from app.jobs.lifecycle import Job
from app.jobs.listing import record_key
from app.jobs.webhook_outbox import WebhookOutbox
from app.records.audio import users_key
from app.records.orphans import OrphanLedger
from app.records.quarantine import Quarantine
from app.records.shared import OPEN_JOBS_KEY
from app.redis_client import server_clock
from app.settings import Settings

EXPIRY_KEY = "earmark:jobs:expiry"
_DROP_MARGIN = 3600.0  # s after Redis drops a record until its large fields are deleted: clocks differ

Step = Callable[[Job], Job | None]
Also = Callable[[Pipeline, Job], None]


class JobRecords:
    """The records of all jobs of one deployment, with the indices that follow from them."""

    def __init__(self, redis: Redis, settings: Settings, fair_queue: FairQueue, quarantine: Quarantine) -> None:
        self._redis = redis
        self._settings = settings
        self._fair_queue = fair_queue
        self._quarantine = quarantine
        self._orphans = OrphanLedger(redis)
        self._clock = server_clock(redis)
        # The record of a running job that this process has written last: a worker, which changes it again and again,
        # need not read it, since the compare-and-set tells whether another process has changed it.
        self._recent: tuple[bytes, Job] | None = None

    def read(self, job_id: str) -> tuple[bytes, Job]:
        """Return a record as it is stored, and parsed. Raises `NotFound`, `RecordTooNew` and `RecordUnreadable`."""
        document: Any = self._quarantine.get(record_key(job_id))
        if document is None:
            raise NotFound("There is no such job.")
        return document, lifecycle.parse(document)

    def change(
        self,
        job_id: str,
        step: Step,
        event: str,
        also: Also | None = None,
    ) -> Job | None:
        """Apply a step of the life cycle; retry on the new record if it changed meanwhile. None: the step is refused.

        also: adds commands that belong to the change to its transaction.
        """
        recent = self._recent
        if recent is not None and recent[1].id != job_id:
            recent = None
        while True:
            document, job = recent or self.read(job_id)
            changed = step(job)
            if changed is None or changed == job:
                if recent is None:
                    return changed
                recent = None  # another process may have changed the record since
                continue
            if changed.is_finished and not job.is_finished:
                changed.expires_at = self._expiry_time(changed)
            changed.revision = job.revision + 1
            with self._redis.pipeline() as pipe:
                written = self.write(pipe, changed, event, job)
                if changed.is_finished and not job.is_finished:
                    WebhookOutbox.put(pipe, changed)
                if also is not None:
                    also(pipe, changed)
                if self._fair_queue.commit(job.model, pipe, [is_unchanged(job, document)]) is not None:
                    metrics.count_change(job, changed)
                    self._recent = (written, changed.model_copy()) if changed.status == "running" else None
                    return changed
            recent = None

    def change_own(
        self,
        job_id: str,
        step: Step,
        event: str,
        also: Also | None = None,
    ) -> bool:
        """Apply a step of an execution. False: the job is not that execution's, or cannot be read."""
        try:
            return self.change(job_id, step, event, also) is not None
        except (NotFound, RecordUnreadable):
            return False

    def write(self, pipe: Pipeline, job: Job, event: str, before: Job | None = None) -> bytes:
        """Write the record, its event, and every index that follows from its state; return the record's document."""
        until = None
        if job.is_finished and job.expires_at is not None:
            until = int(job.expires_at + self._settings.record_retention)
        document = job.document().encode()
        pipe.set(record_key(job.id), document, exat=until)
        events.append(pipe, job, event, before)
        if job.is_finished:
            self.leave_indices(pipe, job)
            if until is not None:
                pipe.expireat(events_key(job.id), until)
                if job.stored_fields:
                    self._orphans.add(pipe, record_folder(job.id), until + _DROP_MARGIN)
            if job.expires_at is not None and not job.expired:
                pipe.zadd(EXPIRY_KEY, {job.id: job.expires_at})
            return document
        pipe.sadd(OPEN_JOBS_KEY, job.id)
        for audio_id in job.audio_ids:
            pipe.sadd(users_key(audio_id), job.id)
        if job.status == "running" and event == "state":
            self._fair_queue.leave(pipe, job, finished=False)
        return document

    def leave_indices(self, pipe: Pipeline, job: Job) -> None:
        """Take a job that has finished, or is deleted, out of the queue, the open jobs and its uploads' users."""
        pipe.srem(OPEN_JOBS_KEY, job.id)
        self._fair_queue.leave(pipe, job, finished=True)
        audio_ids = job.audio_ids
        if "audio_ids" in job.stored_names:
            members: Any = self._redis.smembers(audio_ids_key(job.id))
            audio_ids = [member.decode() for member in members]
            pipe.delete(audio_ids_key(job.id))
        for audio_id in audio_ids:
            pipe.srem(users_key(audio_id), job.id)

    def _expiry_time(self, job: Job) -> float | None:
        """Return when the output of a finished job expires; None: it is kept until it is deleted."""
        is_kept = KINDS[job.kind].kept and job.status == "succeeded"
        return None if is_kept else self._clock.now() + self._settings.stem_retention


def audio_ids_key(job_id: str) -> str:
    """Return the Redis key of the uploads that an unfinished job uses, if its record refers to the store for them."""
    return f"{record_key(job_id)}:audio"


def is_unchanged(job: Job, document: bytes) -> Condition:
    """Return the condition that a record is still this document."""
    return (("unchanged", record_key(job.id), hashlib.sha1(document, usedforsecurity=False).hexdigest()), None)
