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
   `record_retention` later. A saved query that succeeded stays until it is deleted, and `amend` adds to its result.

Every change is a compare-and-set (`job_records.py`) that also appends an event to the record's stream (`events.py`).
All methods raise redis-py's errors when Redis does not answer.
"""

from dataclasses import dataclass
from typing import Any

from redis import Redis
from redis.client import Pipeline

from app import logs
from app.errors import AlreadyFinished, NotFound, QuotaExceeded, RecordTooNew, RecordUnreadable
from app.jobs import events, lifecycle
from app.jobs.excerpt_bytes import ExcerptBytes
from app.jobs.fair_queue import Condition, FairQueue
from app.jobs.job_records import EXPIRY_KEY, Also, JobRecords, Step, audio_ids_key, is_unchanged
from app.jobs.kinds import KINDS, output_folder
from app.jobs.large_fields import record_folder
from app.jobs.lifecycle import Job, JobError, StoredFields, TargetState
from app.jobs.listing import Listing, record_key
from app.jobs.rq_queues import RqQueues
from app.jobs.unreadable_jobs import UnreadableJobs
from app.records.audio import audio_key
from app.records.orphans import OrphanLedger, postpone
from app.records.quarantine import Quarantine
from app.records.shared import OPEN_JOBS_KEY
from app.records.usage import Usage, stored_size
from app.redis_client import server_clock
from app.settings import Settings

_REPLACED_SECONDS = 600.0  # for which a replaced object is kept
_KEPT_RETRY_AFTER = 3600  # s; records expire after weeks, and jobs may be deleted at any time


@dataclass(frozen=True)
class QueuedJob:
    """A job as it was created, and its position in the fair queue: 1 is next, 0 does not wait."""

    job: Job
    position: int


class JobRepository:
    """All jobs of one deployment. `fair_queue`, `rq_queues`, `listing`, `unreadable` and `excerpt_bytes` are for
    callers too."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self.redis = redis
        self.fair_queue = FairQueue(redis, settings)
        self.rq_queues = RqQueues(redis, settings)
        self.quarantine = Quarantine(redis)
        self.listing = Listing(redis)
        self.excerpt_bytes = ExcerptBytes(redis, settings)
        self.unreadable = UnreadableJobs(redis, settings, self.fair_queue, self.listing, self.quarantine)
        self._settings = settings
        self._orphans = OrphanLedger(redis)
        self._usage = Usage(redis, settings)
        self._clock = server_clock(redis)
        self._records = JobRecords(redis, settings, self.fair_queue, self.quarantine)

    # Calls of the front end

    def create(self, job: Job) -> QueuedJob:
        """Write a new record and add it to the fair queue; if a worker is free, it is on an RQ queue at once.

        Raises `QueueFull`, `QuotaExceeded` if its owner keeps too many jobs, and `NotFound` if one of its uploads does
        not exist; then nothing is written. A repeated call changes nothing and returns the current position.
        """
        job = job.model_copy(update={"revision": 1, "request_id": job.request_id or logs.request_id.get()})
        is_new: Condition = (("absent", record_key(job.id)), None)  # not so where the reply to a first try was lost
        uploads: list[Condition] = [
            (("present", audio_key(audio_id)), NotFound(f"There is no audio {audio_id}.")) for audio_id in job.audio_ids
        ]
        with self.redis.pipeline() as pipe:
            self._records.write(pipe, job, "state")
            if job.audio_ids and "audio_ids" in job.stored_names:
                pipe.sadd(audio_ids_key(job.id), *job.audio_ids)
            for stored in job.stored_fields:
                self._orphans.remove(pipe, stored.key)
            self.listing.add(pipe, job)
            self.rq_queues.write_entry(pipe, job)
            self.fair_queue.enter(pipe, job)
            kept = self._kept_conditions(job.owner)
            conditions = [is_new, *self.fair_queue.room_conditions(job), *kept, *uploads]
            position = self.fair_queue.commit(job.model, pipe, conditions)
        return QueuedJob(job, self.fair_queue.position(job) if position is None else position)

    def get(self, job_id: str) -> Job:
        """Return the record. Raises `NotFound`, `RecordTooNew` if a newer release wrote it, and `RecordUnreadable`."""
        return self._records.read(job_id)[1]

    def cancel(self, job_id: str) -> Job:
        """Cancel a waiting job, or ask a running one to stop. Raises `AlreadyFinished`, `NotFound`.

        The job that it returns does not wait: its position in the fair queue is 0.
        """
        job = self._records.change(job_id, lambda job: lifecycle.request_cancel(job, self._clock.now()), "state")
        if job is None:
            finished = self.get(job_id)
            raise AlreadyFinished(finished.kind, finished.status)
        return job

    def delete(self, job_id: str) -> Job:
        """Delete the record, in whatever state; work on it stops and cannot publish. Raises `NotFound`.

        The caller deletes what the job stored; if it dies before, housekeeping does, by the ledger of orphaned objects.
        """
        while True:
            document, job = self._records.read(job_id)
            with self.redis.pipeline() as pipe:
                self._records.leave_indices(pipe, job)
                pipe.zrem(EXPIRY_KEY, job.id)
                self.listing.remove(pipe, job.owner, job.kind, job.id)
                self.excerpt_bytes.remove(pipe, job)
                pipe.delete(record_key(job.id))
                events.delete(pipe, job)
                due = self._clock.now() + self._settings.execution_seconds
                self._orphans.add(pipe, output_folder(job.kind, job.id), due)
                if job.stored_fields:
                    self._orphans.remove(pipe, record_folder(job.id))  # due when the record would have been dropped
                    self._orphans.add(pipe, record_folder(job.id), due)
                if self.fair_queue.commit(job.model, pipe, [is_unchanged(job, document)]) is not None:
                    return job

    # Calls of workers

    def claim(self, job_id: str, execution: str, model: str | None = None) -> Job | None:
        """Take the job for an execution. None: nothing is to do (finished, canceled, given up, deleted, or moved to
        another version than `model`, which the worker has)."""

        def step(job: Job) -> Job | None:
            if model is not None and job.model not in (model, job.model_name):
                return None
            return lifecycle.claim(job, execution, self._clock.now(), attempts)

        def register_output(pipe: Pipeline, job: Job) -> None:
            if job.execution == execution and not job.is_finished:
                due = self._clock.now() + self._settings.execution_seconds
                self._orphans.add(pipe, self.output_prefix(job, execution), due)

        attempts = self._settings.job_attempts
        try:
            job = self._records.change(
                job_id,
                step,
                "state",
                register_output,
            )
        except NotFound:
            return None
        except RecordUnreadable:
            self.unreadable.set_aside(job_id)
            return None
        return job if job is not None and not job.is_finished else None

    @staticmethod
    def output_prefix(job: Job, execution: str) -> str:
        """Return the prefix in the store of what an execution writes."""
        return f"{output_folder(job.kind, job.id)}/{execution}"

    def report_progress(self, job_id: str, execution: str, ratio: float, stage: str) -> bool:
        """Report the progress (0 to 1). False: the job does not belong to this execution. Cheap to call often."""
        return self._records.change_own(
            job_id, lambda job: lifecycle.report_progress(job, execution, ratio, stage, self._clock.now()), "progress"
        )

    def update_target(self, job_id: str, execution: str, state: TargetState) -> bool:
        """Publish the outcome of one target before the rest. False: the job does not belong to this execution."""
        return self._records.change_own(
            job_id, lambda job: lifecycle.update_target(job, execution, state, self._clock.now()), "target"
        )

    def record_duration(self, job_id: str, execution: str, seconds: float, charged_seconds: float) -> bool:
        """Record the duration of the decoded recording, and the seconds charged for it.

        False: the job does not belong to this execution.
        """
        return self._records.change_own(
            job_id,
            lambda job: lifecycle.record_duration(job, execution, seconds, charged_seconds, self._clock.now()),
            "progress",
        )

    def should_stop(self, job_id: str, execution: str) -> bool:
        """Whether to stop: canceled, deleted, finished, or claimed by another execution."""
        try:
            job = self.get(job_id)
        except (NotFound, RecordUnreadable):
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
        excerpt_bytes: int = 0,
    ) -> bool:
        """Publish the stored output, in one step. False: the job is not this execution's; delete what was stored.

        stored: where `LargeFields.store_outcome` has put the other arguments. excerpt_bytes: of the output, what its
        owner's limit counts.
        """

        def step(job: Job) -> Job | None:
            now = self._clock.now()
            return lifecycle.publish(job, execution, targets, result, warnings or [], now, stored, excerpt_bytes)

        def own_output(pipe: Pipeline, job: Job) -> None:
            self._orphans.remove(pipe, self.output_prefix(job, execution))
            self.excerpt_bytes.add(pipe, job)
            if stored is not None:
                self._orphans.remove(pipe, stored.key)
            self._usage.add_stored(pipe, job.owner, stored_size(result) + excerpt_bytes)

        return self._records.change_own(job_id, step, "state", own_output)

    def amend(self, complete: Job, result: dict[str, Any], stored: StoredFields | None = None) -> bool:
        """Replace the result of a job that has succeeded by one that contains more. False: the record has changed, or
        is deleted; delete what was stored.

        complete: the job as it was read, with its large fields. stored: where `LargeFields.store_outcome` has put the
        new outcome.
        """

        def step(job: Job) -> Job | None:
            if job.revision != complete.revision:
                return None
            return lifecycle.amend(complete, result, self._clock.now(), stored)

        def register(pipe: Pipeline, job: Job) -> None:
            if stored is not None:
                self._orphans.remove(pipe, stored.key)
            for replaced in complete.stored_fields:
                if replaced not in job.stored_fields:  # readers of the record before may be about to read it
                    self._orphans.add(pipe, replaced.key, self._clock.now() + _REPLACED_SECONDS)

        return self._records.change_own(complete.id, step, "state", register)

    def fail(
        self,
        job_id: str,
        execution: str,
        error: JobError,
        targets: list[TargetState] | None = None,
        warnings: list[str] | None = None,
    ) -> bool:
        """End the job with an error that no retry would avoid. False: the job does not belong to this execution."""
        return self._records.change_own(
            job_id, lambda job: lifecycle.fail(job, execution, error, self._clock.now(), targets, warnings), "state"
        )

    def confirm_cancel(self, job_id: str, execution: str) -> bool:
        """Mark the job canceled: its work has stopped because `cancel` asked for it. False: this was not asked."""
        return self._records.change_own(
            job_id, lambda job: lifecycle.confirm_cancel(job, execution, self._clock.now()), "state"
        )

    def release(self, job_id: str, execution: str) -> bool:
        """Let the unfinished job wait again because the worker shuts down. False: not this execution's job."""
        attempts = self._settings.job_attempts
        return self._records.change_own(
            job_id, lambda job: lifecycle.requeue(job, self._clock.now(), attempts, execution), "state", self._put_back
        )

    # Calls of housekeeping

    def find_lost(self) -> list[Job]:
        """Return jobs that are unfinished by their record, and in neither the fair queue nor RQ for `lost_after` s."""
        with self.redis.pipeline() as pipe:  # one snapshot, so that no job that moves on, or back, is missed
            pipe.smembers(OPEN_JOBS_KEY)
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
                self.unreadable.leave_all(job_id)
                continue
            except RecordTooNew:  # left to the housekeeping of the newer release
                continue
            except RecordUnreadable:
                self.unreadable.set_aside(job_id)
                continue
            if not job.is_finished and self._clock.now() - job.changed_at >= self._settings.lost_after:
                lost.append(job)
        return lost

    def requeue(self, lost: Job) -> Job | None:
        """Put a lost job at the front of its RQ queue: it has had its turn. None: finished, or changed meanwhile.

        A job whose executions died too often is given up.
        """

        def step(job: Job) -> Job | None:
            if job.revision != lost.revision:  # a worker has it, or another housekeeping process was here
                return None
            return lifecycle.requeue(job, self._clock.now(), self._settings.job_attempts)

        def put(pipe: Pipeline, job: Job) -> None:
            if job.is_finished:
                self.rq_queues.delete_entry(pipe, job.id)
            else:
                self.rq_queues.put_first(pipe, job)
                self._put_back(pipe, job)

        try:
            return self._records.change(lost.id, step, "state", put)
        except (NotFound, RecordUnreadable):  # the next `find_lost` sets it aside
            return None

    def move(self, job_id: str, model: str) -> Job | None:
        """Let a waiting job be done by another version of its model, at the end of its owner's jobs there.

        None: it does not wait, or its request names the version. If this process dies between the two queues,
        `find_lost` finds the job.
        """
        moved = self._change_waiting(
            job_id,
            lambda job: lifecycle.move(job, model, self._clock.now()),
            lambda pipe, job: self.fair_queue.leave(pipe, job, finished=True),
        )
        if moved is not None:
            with self.redis.pipeline() as pipe:
                self.rq_queues.write_entry(pipe, moved)
                self.fair_queue.enter(pipe, moved)
                self.fair_queue.commit(model, pipe, [is_unchanged(moved, moved.document().encode())])
        return moved

    def give_up_model(self, job_id: str) -> Job | None:
        """Fail a waiting job whose model is gone. None: it does not wait."""
        return self._change_waiting(job_id, lambda job: lifecycle.give_up_model(job, self._clock.now()))

    def discard_entry(self, job_id: str) -> None:
        """Delete the RQ entry of a finished job whose execution died; an unfinished job needs it again."""
        if not self.redis.sismember(OPEN_JOBS_KEY, job_id):
            self.rq_queues.delete_entry(self.redis, job_id)

    def postpone_expiry(self, job_id: str, seconds: float) -> None:
        """Let an expired job be due again after some seconds."""
        postpone(self.redis, EXPIRY_KEY, job_id, seconds)

    def expired_ids(self, limit: int) -> list[str]:
        """Return ids of jobs whose output has passed its retention time, the oldest first."""
        members: Any = self.redis.zrange(EXPIRY_KEY, 0, self._clock.now(), byscore=True, offset=0, num=limit)
        return [member.decode() for member in members]

    def expire(self, job_id: str) -> None:
        """Mark the output as expired; to be called before it is deleted. An unreadable record is set aside."""
        try:
            self._records.change(job_id, lambda job: lifecycle.expire(job, self._clock.now()), "state")
        except NotFound:
            pass
        except RecordUnreadable:
            self.unreadable.set_aside(job_id)
        self.redis.zrem(EXPIRY_KEY, job_id)

    def trim(self) -> int:
        """Remove list entries whose records Redis has dropped. Returns how many."""
        retention = self._settings.stem_retention + self._settings.record_retention
        return sum(self.listing.trim(kind, retention) for kind in KINDS.values())

    def kept_count(self, owner: str) -> int:
        """Return how many jobs and saved queries of an owner are kept."""
        with self.redis.pipeline(transaction=False) as pipe:
            for kind in KINDS.values():
                pipe.zcard(self.listing.key(owner, kind.name))
            return sum(pipe.execute())

    def unfinished_count(self) -> int:
        """Return the number of jobs that wait or run, of all models."""
        return self.redis.scard(OPEN_JOBS_KEY)

    def _kept_conditions(self, owner: str) -> list[Condition]:
        """Return the conditions that an API key has room in its lists for one more job."""
        if not owner:
            return []
        limit = self._settings.kept_jobs
        full = QuotaExceeded(f"{limit} jobs and saved queries are kept already: delete some.", _KEPT_RETRY_AFTER)
        return [(("listed", limit, *(self.listing.key(owner, kind.name) for kind in KINDS.values())), full)]

    def _put_back(self, pipe: Pipeline, job: Job) -> None:
        if not job.is_finished:
            self.fair_queue.put_back(pipe, job)

    def _change_waiting(
        self,
        job_id: str,
        step: Step,
        also: Also | None = None,
    ) -> Job | None:
        try:
            return self._records.change(job_id, step, "state", also)
        except NotFound:
            return None
        except RecordUnreadable:
            self.unreadable.set_aside(job_id)
            return None
