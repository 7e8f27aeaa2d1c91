"""Job records in Redis, and the queue. HTTP and workers share this file; it is the truth, RQ's own states are hints.

The life of a job (the steps are in `lifecycle.py`):

1. `create(job)` writes the record and its first event in one transaction that also checks that its uploads exist and
   marks them as used, and gives the job its place in the line (`line.py`), from which it comes to an RQ queue in its
   turn. What falls out of both, housekeeping finds in `lost()` and `requeue()`s.
2. The worker's task (`kinds.py` names it) calls `claim(id, execution)` with an id that is new for every delivery.
   None: the job is over, canceled, gone, or was given up; return quietly. A claim takes the job away from an earlier
   execution, which from then on can change nothing.
3. While it works: `progress(...)` and `should_stop(id, execution)`. Either says when to stop: canceled, deleted, or
   taken by another execution. Outputs are stored under `output_prefix` (`separations/ID/EXECUTION`); `claim` has put
   that prefix in the ledger of leftovers, so that it is swept unless it is published.
4. One of `publish`, `fail`, `stop` (after a request to cancel) and `release` (the worker shuts down: the job waits
   again, and the attempt does not count). False: it was not this execution's any more; delete what it stored.
5. `expired()` and `expire(id)` when its outputs' time is over; Redis drops the record itself `record_retention` later.
   A saved query that succeeded stays until it is deleted.

Every change is a compare-and-set (`Line.commit`) that also appends an event to the record's stream (`events.py`). All
methods raise redis-py's errors when Redis does not answer.
"""

import hashlib
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from redis import Redis
from redis.client import Pipeline
from rq import Queue

from app import logs
from app.errors import AlreadyFinished, NotFound, RecordTooNew
from app.jobs import events, lifecycle, metrics
from app.jobs.events import events_key
from app.jobs.fair_queue import Condition, FairQueue
from app.jobs.kinds import KINDS, output_folder
from app.jobs.lifecycle import Job, JobError, TargetState
from app.jobs.listing import Listing, record_key
from app.jobs.rq_queues import RqQueues, queue_name
from app.jobs.webhook_outbox import WebhookOutbox
from app.records.audio import audio_key, users_key
from app.records.orphans import OrphanLedger
from app.redis_client import connect
from app.settings import Settings

__all__ = ["JobRepository", "connect", "events_key", "queue_name", "record_key"]

log = logging.getLogger("earmark.jobs")

_OPEN = "earmark:jobs:open"
_EXPIRY = "earmark:jobs:expiry"


class JobRepository:
    """All jobs of one deployment."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self.redis = redis
        self._settings = settings
        self._queues = RqQueues(redis, settings)
        self._line = FairQueue(redis, settings)
        self._leftovers = OrphanLedger(redis)
        self._listing = Listing(redis)

    # What HTTP does

    def create(self, job: Job) -> Job:
        """Write a new record and put it in line; where a worker is free, it is on its queue at once.

        Raises `QueueFull`, and `NotFound` if one of its uploads is gone; then there is no record.
        """
        job = job.model_copy(update={"revision": 1, "request_id": job.request_id or logs.request_id.get()})
        new: Condition = (("absent", record_key(job.id)), None)  # else the answer to our first try was lost
        uploads: list[Condition] = [
            (("present", audio_key(audio_id)), NotFound(f"There is no audio {audio_id}.")) for audio_id in job.audio_ids
        ]
        with self.redis.pipeline() as pipe:
            self._write(pipe, job, "state")
            self._listing.add(pipe, job)
            self._queues.write_entry(pipe, job)
            self._line.enter(pipe, job)
            self._line.commit(job.model, pipe, [new, *self._line.room_conditions(job), *uploads])
        return job

    def get(self, job_id: str) -> Job:
        """The record as it stands. Raises `NotFound`, and `RecordTooNew` if a newer release wrote it."""
        return self._read(job_id)[1]

    def newest(
        self, owner: str, kind: str, limit: int, before: str | None, status: lifecycle.Status | None
    ) -> tuple[list[Job], str | None]:
        """A page of a list; see `Listing.newest`."""
        return self._listing.page(owner, kind, limit, before, status)

    def position(self, job: Job) -> int:
        """Its place in the line, 1 for the next; 0 when it does not wait."""
        return self._line.position(job)

    def cancel(self, job_id: str) -> Job:
        """Cancel a waiting job, or ask a running one to stop. Raises `AlreadyOver`, `NotFound`."""
        job = self._change(job_id, lambda job: lifecycle.request_cancel(job, time.time()), "state")
        if job is None:
            raise AlreadyFinished()
        return job

    def delete(self, job_id: str) -> Job:
        """Take the record away, whatever its state; work on it stops and cannot publish. Raises `NotFound`.

        The caller deletes what the job stored; should it die before, the ledger of leftovers has it.
        """
        while True:
            document, job = self._read(job_id)
            with self.redis.pipeline() as pipe:
                self._leave_indices(pipe, job)
                pipe.zrem(_EXPIRY, job.id)
                self._listing.remove(pipe, job)
                pipe.delete(record_key(job.id))
                events.delete(pipe, job)
                self._leftovers.add(pipe, output_folder(job.kind, job.id), time.time() + self._execution_seconds)
                if self._line.commit(job.model, pipe, [_is_unchanged(job, document)]):
                    return job

    # What workers do

    def claim(self, job_id: str, execution: str) -> Job | None:
        """Take the job for this execution; None when there is nothing to do (over, canceled, given up, deleted)."""

        def ledger(pipe: Pipeline, job: Job) -> None:
            if job.execution == execution and not job.finished:
                self._leftovers.add(pipe, self.output_prefix(job, execution), time.time() + self._execution_seconds)

        attempts = self._settings.job_attempts
        try:
            job = self._change(
                job_id, lambda job: lifecycle.claim(job, execution, time.time(), attempts), "state", ledger
            )
        except NotFound:
            return None
        return job if job is not None and not job.finished else None

    @staticmethod
    def output_prefix(job: Job, execution: str) -> str:
        """Where an execution stores what it makes."""
        return f"{output_folder(job.kind, job.id)}/{execution}"

    def report_progress(self, job_id: str, execution: str, ratio: float, stage: str) -> bool:
        """Tell how far it is (0 to 1). False: the job is not this execution's any more. Cheap to call often."""
        return self._change_owned(
            job_id, lambda job: lifecycle.report_progress(job, execution, ratio, stage, time.time()), "progress"
        )

    def update_target(self, job_id: str, execution: str, state: TargetState) -> bool:
        """Tell one target's outcome ahead of the whole. False: not this execution's any more."""
        return self._change_owned(
            job_id, lambda job: lifecycle.update_target(job, execution, state, time.time()), "target"
        )

    def record_duration(self, job_id: str, execution: str, seconds: float) -> bool:
        """Tell how long its recording turned out to be. False: not this execution's any more."""
        return self._change_owned(
            job_id, lambda job: lifecycle.record_duration(job, execution, seconds, time.time()), "progress"
        )

    def should_stop(self, job_id: str, execution: str) -> bool:
        """Whether to stop: canceled, deleted, over, or taken by another execution."""
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
    ) -> bool:
        """Make the stored outcome visible, in one step. False: another did, or nobody wants it; delete yours."""

        def ledger(pipe: Pipeline, job: Job) -> None:
            self._leftovers.remove(pipe, self.output_prefix(job, execution))

        return self._change_owned(
            job_id,
            lambda job: lifecycle.publish(job, execution, targets, result, warnings or [], time.time()),
            "state",
            ledger,
        )

    def fail(self, job_id: str, execution: str, error: JobError, targets: list[TargetState] | None = None) -> bool:
        """End the job with an error that trying again would not cure. False: not this execution's any more."""
        return self._change_owned(
            job_id, lambda job: lifecycle.fail(job, execution, error, time.time(), targets), "state"
        )

    def confirm_cancel(self, job_id: str, execution: str) -> bool:
        """The work was stopped because `cancel` asked for it. False: nobody asked this execution."""
        return self._change_owned(job_id, lambda job: lifecycle.confirm_cancel(job, execution, time.time()), "state")

    def release(self, job_id: str, execution: str) -> bool:
        """Give the job back unfinished, because the worker shuts down; it waits again. False: not this execution's."""
        attempts = self._settings.job_attempts
        return self._change_owned(
            job_id, lambda job: lifecycle.requeue(job, time.time(), attempts, execution), "state", self._return_to_queue
        )

    # What housekeeping does

    def find_lost(self) -> list[Job]:
        """Jobs that wait or run by their record, and that neither the line nor RQ has, for `lost_after` s."""
        with self.redis.pipeline() as pipe:  # at one moment, so that none that moves on, or back, slips past
            pipe.smembers(_OPEN)
            for model in self._line.models():
                self._line.request_ids(pipe, model)
                self._queues.request_held_ids(pipe, model)
            unfinished, *places = pipe.execute()
        found = {member.partition(b":")[0] for place in places for member in place}  # an id, or ID:EXECUTION
        lost = []
        for job_id in sorted(member.decode() for member in unfinished - found):
            try:
                job = self.get(job_id)
            except NotFound:
                self.redis.srem(_OPEN, job_id)
                continue
            except RecordTooNew:  # the newer release's housekeeping looks after it
                continue
            except ValueError:  # one damaged record must not keep the others from being brought back
                log.exception("the record of %s cannot be read", job_id)
                continue
            if not job.finished and time.time() - job.changed_at >= self._settings.lost_after:
                lost.append(job)
        return lost

    def requeue(self, lost: Job) -> Job | None:
        """Put a lost job in front of its queue: it has had its turn. None: it is over, or was changed meanwhile.

        One whose executions died too often is given up.
        """

        def step(job: Job) -> Job | None:
            if job.revision != lost.revision:  # somebody has it, or another housekeeper was here
                return None
            return lifecycle.requeue(job, time.time(), self._settings.job_attempts)

        def put(pipe: Pipeline, job: Job) -> None:
            if job.finished:
                self._queues.delete_entry(pipe, job.id)
            else:
                self._queues.put_first(pipe, job)
                self._return_to_queue(pipe, job)

        try:
            return self._change(lost.id, step, "state", put)
        except NotFound:
            return None

    def discard_entry(self, job_id: str) -> None:
        """RQ has struck out an execution that died: where nobody brings the job back, RQ's entry goes too."""
        if not self.redis.sismember(_OPEN, job_id):
            self._queues.delete_entry(self.redis, job_id)

    def _return_to_queue(self, pipe: Pipeline, job: Job) -> None:
        if not job.finished:
            self._line.put_back(pipe, job)

    def postpone_expiry(self, job_id: str, seconds: float) -> None:
        """Look at an expired job again later."""
        self.redis.zadd(_EXPIRY, {job_id: time.time() + seconds}, xx=True)

    def expired_ids(self, limit: int) -> list[str]:
        """Ids of jobs whose stems have been kept as long as promised, the oldest first."""
        found: Any = self.redis.zrange(_EXPIRY, 0, time.time(), byscore=True, offset=0, num=limit)
        return [member.decode() for member in found]

    def expire(self, job_id: str) -> None:
        """Mark the stems as gone; call it before they are deleted."""
        with suppress(NotFound):
            self._change(job_id, lambda job: lifecycle.expire(job, time.time()), "state")
        self.redis.zrem(_EXPIRY, job_id)

    def trim(self) -> int:
        """Drop index entries whose records Redis has dropped. Returns how many."""
        kept = self._settings.stem_retention + self._settings.record_retention + 7 * 86400
        return sum(self._listing.trim(kind, kept) for kind in KINDS.values())

    # The queue, and figures

    def queue(self, model: str, short: bool = False) -> Queue:
        """The RQ queue of a model's jobs; `short`: of the workers that take short ones only."""
        return self._queues.queue(model, short)

    def queues(self) -> list[Queue]:
        """The RQ queues of all models that have or had jobs."""
        return [self.queue(model, short) for model in self._line.models() for short in (False, True)]

    def serve(self, model: str) -> None:
        """Put jobs whose turn has come on the queue; cheap, and harmless whoever calls it."""
        self._line.fill(model)

    def serve_all(self) -> None:
        """The same for every model."""
        for model in self._line.models():
            self._line.fill(model)

    def waiting(self, model: str) -> int:
        """How many jobs of a model wait."""
        return self._line.waiting_count(model)

    def waiting_seconds(self, model: str) -> float:
        """Seconds of audio of the jobs of a model that wait."""
        return self._line.waiting_seconds(model)

    def oldest_waiting(self, model: str) -> float:
        """Seconds since the oldest of a model's waiting jobs was asked for; 0 where none waits."""
        asked = self._line.oldest_created_at(model)
        return max(0.0, time.time() - asked) if asked is not None else 0.0

    def running(self, model: str) -> int:
        """How many jobs of a model workers hold, by what the queue says."""
        return self._queues.running_count(model)

    def unfinished(self) -> int:
        """How many jobs wait or run, of all models."""
        return self.redis.scard(_OPEN)

    @property
    def _execution_seconds(self) -> float:
        """After so long no execution can still be alive: its worker's clock has killed it."""
        return 2 * self._settings.job_timeout + 600

    # Compare-and-set

    def _change_owned(
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
        """Take a step of the life cycle, unless the record changed meanwhile: then look again. None: refused."""
        while True:
            document, job = self._read(job_id)
            changed = step(job)
            if changed is None or changed == job:
                return changed
            if changed.finished and not job.finished:
                changed.expires_at = self._expiry_time(changed)
            changed.revision = job.revision + 1
            with self.redis.pipeline() as pipe:
                self._write(pipe, changed, event)
                if changed.finished and not job.finished:
                    WebhookOutbox.put(pipe, changed)
                if also is not None:
                    also(pipe, changed)
                if self._line.commit(job.model, pipe, [_is_unchanged(job, document)]):
                    metrics.count_change(job, changed)
                    return changed

    def _read(self, job_id: str) -> tuple[bytes, Job]:
        document: Any = self.redis.get(record_key(job_id))
        if document is None:
            raise NotFound("There is no such job.")
        return document, lifecycle.parse(document)

    def _expiry_time(self, job: Job) -> float | None:
        """Until when what an ended job made is kept; None: until it is deleted."""
        kept = KINDS[job.kind].kept and job.status == "succeeded"
        return None if kept else time.time() + self._settings.stem_retention

    def _write(self, pipe: Pipeline, job: Job, event: str) -> None:
        """The record, its event, and every index that follows from its state."""
        until = None
        if job.finished and job.expires_at is not None:
            until = int(job.expires_at + self._settings.record_retention)
        pipe.set(record_key(job.id), job.model_dump_json(), exat=until)
        events.append(pipe, job, event)
        if job.finished:
            self._leave_indices(pipe, job)
            if until is not None:
                pipe.expireat(events_key(job.id), until)
            if job.expires_at is not None and not job.expired:
                pipe.zadd(_EXPIRY, {job.id: job.expires_at})
            return
        pipe.sadd(_OPEN, job.id)
        for audio_id in job.audio_ids:
            pipe.sadd(users_key(audio_id), job.id)
        if job.status == "running" and event == "state":
            self._line.leave(pipe, job, over=False)

    def _leave_indices(self, pipe: Pipeline, job: Job) -> None:
        pipe.srem(_OPEN, job.id)
        self._line.leave(pipe, job, over=True)
        for audio_id in job.audio_ids:
            pipe.srem(users_key(audio_id), job.id)


def _is_unchanged(job: Job, document: bytes) -> Condition:
    return (("same", record_key(job.id), hashlib.sha1(document, usedforsecurity=False).hexdigest()), None)
