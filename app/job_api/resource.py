"""One kind of job as clients know it: made, found, told, listed and deleted, whatever it is that it does."""

import hashlib
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic

from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.types import Scope

from app.dependencies import Parts
from app.errors import NotFound, RequestInvalid
from app.job_api import webhooks as webhooks
from app.job_api.schemas import Answer, JobOptions
from app.jobs.fair_queue import UNKNOWN_SECONDS
from app.jobs.kinds import Kind, stored_at
from app.jobs.lifecycle import Job, Status, TargetState
from app.jobs.poll_cache import Told
from app.keys.callers import Caller
from app.model_registry import ModelDescription
from app.records.ids import is_id, new_id


@dataclass(frozen=True)
class Resource(Generic[Answer]):
    """A kind of job, and what its records are told as."""

    kind: Kind
    answer: type[Answer]

    def make(
        self,
        parts: Parts,
        request: BaseModel,
        sent: JobOptions,
        model: ModelDescription,
        audio_ids: Iterable[str],
        *,
        audio_seconds: float | None,
        targets: Iterable[TargetState] = (),
    ) -> Job:
        """A job for a checked request, accepted as the caller's. Raises what `accept` and `webhooks.wanted` do.

        audio_seconds: of the recordings that it works on; None where their headers do not say.
        """
        now = time.time()
        job = Job(
            id=new_id(self.kind.prefix),
            kind=self.kind.name,
            model=model.name,
            request=request.model_dump(),
            audio_ids=list(dict.fromkeys(audio_ids)),
            audio_seconds=audio_seconds,
            targets=list(targets),
            webhook=webhooks.wanted(parts, sent.webhook),
            metadata=sent.metadata,
            created_at=now,
            changed_at=now,
            expires_at=now + parts.settings.stem_retention,
        )
        return accept(parts, job)

    def find(self, parts: Parts, job_id: str) -> Job:
        """The record of the caller's job; raises `NotFound` for what is no id and what is another's, too."""
        if not is_id(job_id, self.kind.prefix):
            raise NotFound(f"There is no such {self.kind.name}.")
        return parts.caller.own(parts.jobs.get(job_id), "job")

    def tell(self, parts: Parts, job: Job) -> Answer:
        """The job as clients see it."""
        return self._answer(parts, job, parts.jobs.position(job))

    async def poll(self, parts: Parts, caller: Caller, scope: Scope, job_id: str) -> Told:
        """The caller's job as polls are told it, without a thread; raises as `find` does."""
        if not is_id(job_id, self.kind.prefix):
            raise NotFound(f"There is no such {self.kind.name}.")
        if not parts.signatures.prepared:
            await run_in_threadpool(parts.signatures.prepare)

        def render(job: Job, position: int) -> tuple[bytes, str]:
            answer = self._answer(parts, job, position)
            return answer.model_dump_json().encode(), self._etag(answer)

        told = await parts.polls.told(scope, job_id, parts.signatures.changes_at, render)
        caller.own(told.job, "job")
        return told

    def newest(
        self, parts: Parts, status: Status | None, limit: int, cursor: str | None
    ) -> tuple[list[Answer], str | None]:
        """The caller's jobs, the newest first, and the cursor of the next page.

        Raises `RequestInvalid` for what is no cursor.
        """
        if cursor is not None and not is_id(cursor, self.kind.prefix):
            raise RequestInvalid("The cursor is none that a page gave.")
        jobs, following = parts.jobs.newest(parts.caller.key_id, self.kind.name, limit, cursor, status)
        return [self.tell(parts, job) for job in jobs], following

    def delete(self, parts: Parts, job_id: str) -> None:
        """Delete a job, whatever its state, and what it stored."""
        job = parts.jobs.delete(self.find(parts, job_id).id)
        parts.storage.delete_prefix(stored_at(job.kind, job.id))

    def _answer(self, parts: Parts, job: Job, position: int) -> Answer:
        return self.answer.of(job, position, parts.signatures.signing(job.owner))

    @staticmethod
    def _etag(answer: Answer) -> str:
        """Changes with everything but `progress` and `queue`, which change by themselves all the time."""
        told = answer.model_dump_json(exclude={"progress", "queue"})
        return f'"{hashlib.sha256(told.encode()).hexdigest()[:32]}"'


def accept(parts: Parts, job: Job) -> Job:
    """Make a checked job the caller's, charge its audio seconds, and put it in the line; all or nothing.

    Raises `QuotaExceeded`, `QueueFull`, and `NotFound` if one of its uploads is gone.
    """
    caller = parts.caller
    job = job.model_copy(update={"owner": caller.key_id, "weight": float(caller.priority)})
    seconds = UNKNOWN_SECONDS if job.audio_seconds is None else job.audio_seconds
    with parts.quotas.charged(caller.key_id, caller.allowance, seconds):
        job = parts.jobs.create(job)
    parts.metrics.created.labels(job.kind, job.model).inc()
    return job
