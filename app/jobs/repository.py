"""Job records in Redis. The front end and the workers share this module; records are the truth, RQ's states are hints.

The life of a job (its steps are in `lifecycle.py`):

1. `create(job)` writes the record and its first event in one transaction, which also checks that its uploads exist,
   marks them as used, and adds the job to the fair queue (`fair_queue.py`), from which it comes to an RQ queue in its
   turn. Housekeeping finds what fell out of both with `find_lost()` and calls `requeue()`.
2. The worker's task (`kinds.py` names it) calls `claim(id, execution)` with an id that is new for every delivery.
   None: the job has finished, was deleted, or was given up; return quietly. A claim takes the job away from an earlier
   execution, which can change nothing from then on.
3. While it works: `report_progress(...)` and `should_stop(id, execution)`. Either tells when to stop: the job was
   canceled, deleted, or claimed by another execution. Output is stored under `output_prefix`
   (`separations/ID/EXECUTION`); `claim` adds that prefix to the ledger of orphaned objects, so that housekeeping
   deletes it unless it is published.
   Large outcomes are stored before (`large_fields.py`), since records are to stay small.
4. One of `publish`, `fail`, `confirm_cancel` (after a request to cancel) and `release` (the worker shuts down: the job
   waits again, and the attempt does not count). False: the job belongs to another execution; delete what was stored.
5. `expired_ids()` and `expire(id)` after the retention time of its output; Redis drops the record itself
   `record_retention` later. A saved query that succeeded stays until it is deleted.

Every change is a compare-and-set (`FairQueue.commit`) that also appends an event to the record's stream (`events.py`).
All methods raise redis-py's errors when Redis does not answer.
"""

import hashlib
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from redis import Redis
from redis.client import Pipeline

from app import logs
from app.errors import AlreadyFinished, NotFound, RecordTooNew
from app.jobs import events, lifecycle, metrics
from app.jobs.events import events_key
from app.jobs.fair_queue import Condition, FairQueue
from app.jobs.kinds import KINDS, output_folder
from app.jobs.large_fields import record_folder
from app.jobs.lifecycle import Job, JobError, StoredFields, TargetState
from app.jobs.listing import Listing, record_key
from app.jobs.rq_queues import RqQueues
from app.jobs.webhook_outbox import WebhookOutbox
from app.records.audio import audio_key, users_key
from app.records.orphans import OrphanLedger
from app.settings import Settings

log = logging.getLogger("earmark.jobs")

_OPEN = "earmark:jobs:open"
_EXPIRY = "earmark:jobs:expiry"
_DROP_MARGIN = 3600.0  # s after Redis drops a record until its large fields are deleted: clocks differ


@dataclass(frozen=True)
class QueuedJob:
    """A job as it was created, and its position in the fair queue: 1 is next, 0 does not wait."""

    job: Job
    position: int


class JobRepository:
    """All jobs of one deployment. `fair_queue`, `rq_queues` and `listing` are the parts that callers read directly."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self.redis = redis
        self.fair_queue = FairQueue(redis, settings)
        self.rq_queues = RqQueues(redis, settings)
        self.listing = Listing(redis)
        self._settings = settings
        self._orphans = OrphanLedger(redis)

    # Calls of the front end

    def create(self, job: Job) -> QueuedJob:
        """Write a new record and add it to the fair queue; if a worker is free, it is on an RQ queue at once.

        Raises `QueueFull`, and `NotFound` if one of its uploads does not exist; then nothing is written. A repeated
        call changes nothing and returns the current position.
        """
        job = job.model_copy(update={"revision": 1, "request_id": job.request_id or logs.request_id.get()})
        is_new: Condition = (("absent", record_key(job.id)), None)  # not so where the reply to a first try was lost
        uploads: list[Condition] = [
            (("present", audio_key(audio_id)), NotFound(f"There is no audio {audio_id}.")) for audio_id in job.audio_ids
        ]
        with self.redis.pipeline() as pipe:
            self._write(pipe, job, "state")
            if job.audio_ids and "audio_ids" in job.stored_names:
                pipe.sadd(_audio_ids_key(job.id), *job.audio_ids)
            for stored in job.stored_fields:
                self._orphans.remove(pipe, stored.key)
            self.listing.add(pipe, job)
            self.rq_queues.write_entry(pipe, job)
            self.fair_queue.enter(pipe, job)
            conditions = [is_new, *self.fair_queue.room_conditions(job), *uploads]
            position = self.fair_queue.commit(job.model, pipe, conditions)
        return QueuedJob(job, self.fair_queue.position(job) if position is None else position)

    def get(self, job_id: str) -> Job:
        """Return the record. Raises `NotFound`, and `RecordTooNew` if a newer release wrote it."""
        return self._read(job_id)[1]

    def cancel(self, job_id: str) -> Job:
        """Cancel a waiting job, or ask a running one to stop. Raises `AlreadyFinished`, `NotFound`.

        The job that it returns does not wait: its position in the fair queue is 0.
        """
        job = self._change(job_id, lambda job: lifecycle.request_cancel(job, time.time()), "state")
        if job is None:
            raise AlreadyFinished()
        return job

    def delete(self, job_id: str) -> Job:
        """Delete the record, in whatever state; work on it stops and cannot publish. Raises `NotFound`.

        The caller deletes what the job stored; if it dies before, housekeeping does, by the ledger of orphaned objects.
        """
        while True:
            document, job = self._read(job_id)
            with self.redis.pipeline() as pipe:
                self._leave_indices(pipe, job)
                pipe.zrem(_EXPIRY, job.id)
                self.listing.remove(pipe, job)
                pipe.delete(record_key(job.id))
                events.delete(pipe, job)
                due = time.time() + self._settings.execution_seconds
                self._orphans.add(pipe, output_folder(job.kind, job.id), due)
                if job.stored_fields:
                    self._orphans.remove(pipe, record_folder(job.id))  # due when the record would have been dropped
                    self._orphans.add(pipe, record_folder(job.id), due)
                if self.fair_queue.commit(job.model, pipe, [_is_unchanged(job, document)]) is not None:
                    return job

    # Calls of workers

    def claim(self, job_id: str, execution: str) -> Job | None:
        """Take the job for an execution. None: nothing is to do (finished, canceled, given up, deleted)."""

        def register_output(pipe: Pipeline, job: Job) -> None:
            if job.execution == execution and not job.is_finished:
                due = time.time() + self._settings.execution_seconds
                self._orphans.add(pipe, self.output_prefix(job, execution), due)

        attempts = self._settings.job_attempts
        try:
            job = self._change(
                job_id, lambda job: lifecycle.claim(job, execution, time.time(), attempts), "state", register_output
            )
        except NotFound:
            return None
        return job if job is not None and not job.is_finished else None

    @staticmethod
    def output_prefix(job: Job, execution: str) -> str:
        """Return the prefix in the store of what an execution writes."""
        return f"{output_folder(job.kind, job.id)}/{execution}"

    def report_progress(self, job_id: str, execution: str, ratio: float, stage: str) -> bool:
        """Report the progress (0 to 1). False: the job does not belong to this execution. Cheap to call often."""
        return self._change_own(
            job_id, lambda job: lifecycle.report_progress(job, execution, ratio, stage, time.time()), "progress"
        )

    def update_target(self, job_id: str, execution: str, state: TargetState) -> bool:
        """Publish the outcome of one target before the rest. False: the job does not belong to this execution."""
        return self._change_own(
            job_id, lambda job: lifecycle.update_target(job, execution, state, time.time()), "target"
        )

    def record_duration(self, job_id: str, execution: str, seconds: float) -> bool:
        """Record the duration of the decoded recording. False: the job does not belong to this execution."""
        return self._change_own(
            job_id, lambda job: lifecycle.record_duration(job, execution, seconds, time.time()), "progress"
        )

    def should_stop(self, job_id: str, execution: str) -> bool:
        """Whether to stop: canceled, deleted, finished, or claimed by another execution."""
        try:
            job = self.get(job_id)
        except NotFound:
            return True
        return job.status != "running" or job.execution != execution or job.cancel_requested_at is not None

    def publish(
        self,
        job_id: str,
        execution: str,
        targets: list[TargetState],
        result: dict[str, Any],
        warnings: list[str] | None = None,
        stored: StoredFields | None = None,
    ) -> bool:
        """Publish the stored output, in one step. False: the job is not this execution's; delete what was stored.

        stored: where `LargeFields.store_outcome` has put the other arguments.
        """

        def unregister_output(pipe: Pipeline, job: Job) -> None:
            self._orphans.remove(pipe, self.output_prefix(job, execution))
            if stored is not None:
                self._orphans.remove(pipe, stored.key)

        return self._change_own(
            job_id,
            lambda job: lifecycle.publish(job, execution, targets, result, warnings or [], time.time(), stored),
            "state",
            unregister_output,
        )

    def fail(self, job_id: str, execution: str, error: JobError, targets: list[TargetState] | None = None) -> bool:
        """End the job with an error that no retry would avoid. False: the job does not belong to this execution."""
        return self._change_own(
            job_id, lambda job: lifecycle.fail(job, execution, error, time.time(), targets), "state"
        )

    def confirm_cancel(self, job_id: str, execution: str) -> bool:
        """Mark the job canceled: its work has stopped because `cancel` asked for it. False: this was not asked."""
        return self._change_own(job_id, lambda job: lifecycle.confirm_cancel(job, execution, time.time()), "state")

    def release(self, job_id: str, execution: str) -> bool:
        """Let the unfinished job wait again because the worker shuts down. False: not this execution's job."""
        attempts = self._settings.job_attempts
        return self._change_own(
            job_id, lambda job: lifecycle.requeue(job, time.time(), attempts, execution), "state", self._put_back
        )

    # Calls of housekeeping

    def find_lost(self) -> list[Job]:
        """Return jobs that are unfinished by their record, and in neither the fair queue nor RQ for `lost_after` s."""
        with self.redis.pipeline() as pipe:  # one snapshot, so that no job that moves on, or back, is missed
            pipe.smembers(_OPEN)
            for model in self.fair_queue.models():
                self.fair_queue.request_ids(pipe, model)
                self.rq_queues.request_held_ids(pipe, model)
            unfinished, *lists = pipe.execute()
        held = {member.partition(b":")[0] for members in lists for member in members}  # an id, or ID:EXECUTION
        lost = []
        for job_id in sorted(member.decode() for member in unfinished - held):
            try:
                job = self.get(job_id)
            except NotFound:
                self.redis.srem(_OPEN, job_id)
                continue
            except RecordTooNew:  # left to the housekeeping of the newer release
                continue
            except ValueError:  # one damaged record must not keep the others from being requeued
                log.exception("the record of %s cannot be read", job_id)
                continue
            if not job.is_finished and time.time() - job.changed_at >= self._settings.lost_after:
                lost.append(job)
        return lost

    def requeue(self, lost: Job) -> Job | None:
        """Put a lost job at the front of its RQ queue: it has had its turn. None: finished, or changed meanwhile.

        A job whose executions died too often is given up.
        """

        def step(job: Job) -> Job | None:
            if job.revision != lost.revision:  # a worker has it, or another housekeeping process was here
                return None
            return lifecycle.requeue(job, time.time(), self._settings.job_attempts)

        def put(pipe: Pipeline, job: Job) -> None:
            if job.is_finished:
                self.rq_queues.delete_entry(pipe, job.id)
            else:
                self.rq_queues.put_first(pipe, job)
                self._put_back(pipe, job)

        try:
            return self._change(lost.id, step, "state", put)
        except NotFound:
            return None

    def discard_entry(self, job_id: str) -> None:
        """Delete the RQ entry of a finished job whose execution died; an unfinished job needs it again."""
        if not self.redis.sismember(_OPEN, job_id):
            self.rq_queues.delete_entry(self.redis, job_id)

    def postpone_expiry(self, job_id: str, seconds: float) -> None:
        """Let an expired job be due again after some seconds."""
        self.redis.zadd(_EXPIRY, {job_id: time.time() + seconds}, xx=True)

    def expired_ids(self, limit: int) -> list[str]:
        """Return ids of jobs whose output has passed its retention time, the oldest first."""
        members: Any = self.redis.zrange(_EXPIRY, 0, time.time(), byscore=True, offset=0, num=limit)
        return [member.decode() for member in members]

    def expire(self, job_id: str) -> None:
        """Mark the output as expired; to be called before it is deleted."""
        with suppress(NotFound):
            self._change(job_id, lambda job: lifecycle.expire(job, time.time()), "state")
        self.redis.zrem(_EXPIRY, job_id)

    def trim(self) -> int:
        """Remove list entries whose records Redis has dropped. Returns how many."""
        retention = self._settings.stem_retention + self._settings.record_retention + 7 * 86400
        return sum(self.listing.trim(kind, retention) for kind in KINDS.values())

    def unfinished_count(self) -> int:
        """Return the number of jobs that wait or run, of all models."""
        return self.redis.scard(_OPEN)

    def _put_back(self, pipe: Pipeline, job: Job) -> None:
        if not job.is_finished:
            self.fair_queue.put_back(pipe, job)

    # Compare-and-set

    def _change_own(
        self,
        job_id: str,
        step: Callable[[Job], Job | None],
        event: str,
        also: Callable[[Pipeline, Job], None] | None = None,
    ) -> bool:
        try:
            return self._change(job_id, step, event, also) is not None
        except NotFound:
            return False

    def _change(
        self,
        job_id: str,
        step: Callable[[Job], Job | None],
        event: str,
        also: Callable[[Pipeline, Job], None] | None = None,
    ) -> Job | None:
        """Apply a step of the life cycle; retry on the new record if it changed meanwhile. None: the step is refused.

        also: adds commands that belong to the change to its transaction.
        """
        while True:
            document, job = self._read(job_id)
            changed = step(job)
            if changed is None or changed == job:
                return changed
            if changed.is_finished and not job.is_finished:
                changed.expires_at = self._expiry_time(changed)
            changed.revision = job.revision + 1
            with self.redis.pipeline() as pipe:
                self._write(pipe, changed, event, job)
                if changed.is_finished and not job.is_finished:
                    WebhookOutbox.put(pipe, changed)
                if also is not None:
                    also(pipe, changed)
                if self.fair_queue.commit(job.model, pipe, [_is_unchanged(job, document)]) is not None:
                    metrics.count_change(job, changed)
                    return changed

    def _read(self, job_id: str) -> tuple[bytes, Job]:
        document: Any = self.redis.get(record_key(job_id))
        if document is None:
            raise NotFound("There is no such job.")
        return document, lifecycle.parse(document)

    def _expiry_time(self, job: Job) -> float | None:
        """Return when the output of a finished job expires; None: it is kept until it is deleted."""
        is_kept = KINDS[job.kind].kept and job.status == "succeeded"
        return None if is_kept else time.time() + self._settings.stem_retention

    def _write(self, pipe: Pipeline, job: Job, event: str, before: Job | None = None) -> None:
        """Write the record, its event, and every index that follows from its state."""
        until = None
        if job.is_finished and job.expires_at is not None:
            until = int(job.expires_at + self._settings.record_retention)
        pipe.set(record_key(job.id), job.document(), exat=until)
        events.append(pipe, job, event, before)
        if job.is_finished:
            self._leave_indices(pipe, job)
            if until is not None:
                pipe.expireat(events_key(job.id), until)
                if job.stored_fields:
                    self._orphans.add(pipe, record_folder(job.id), until + _DROP_MARGIN)
            if job.expires_at is not None and not job.expired:
                pipe.zadd(_EXPIRY, {job.id: job.expires_at})
            return
        pipe.sadd(_OPEN, job.id)
        for audio_id in job.audio_ids:
            pipe.sadd(users_key(audio_id), job.id)
        if job.status == "running" and event == "state":
            self.fair_queue.leave(pipe, job, finished=False)

    def _leave_indices(self, pipe: Pipeline, job: Job) -> None:
        pipe.srem(_OPEN, job.id)
        self.fair_queue.leave(pipe, job, finished=True)
        audio_ids = job.audio_ids
        if "audio_ids" in job.stored_names:
            members: Any = self.redis.smembers(_audio_ids_key(job.id))
            audio_ids = [member.decode() for member in members]
            pipe.delete(_audio_ids_key(job.id))
        for audio_id in audio_ids:
            pipe.srem(users_key(audio_id), job.id)


def _audio_ids_key(job_id: str) -> str:
    """Return the Redis key of the uploads that an unfinished job uses, if its record refers to the store for them."""
    return f"{record_key(job_id)}:audio"


def _is_unchanged(job: Job, document: bytes) -> Condition:
    return (("unchanged", record_key(job.id), hashlib.sha1(document, usedforsecurity=False).hexdigest()), None)
