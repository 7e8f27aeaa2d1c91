"""One kind of job as clients know it: made, found, told, listed and deleted, whatever it is that it does."""

import hashlib
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic

from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.types import Scope

from app.dependencies import Dependencies
from app.errors import NotFound, RequestInvalid
from app.job_api import webhooks as webhooks
from app.job_api.schemas import Answer, JobOptions
from app.jobs.fair_queue import UNKNOWN_SECONDS
from app.jobs.kinds import Kind, output_folder
from app.jobs.lifecycle import Job, Status, TargetState
from app.jobs.poll_cache import PollResponse
from app.keys.callers import Caller
from app.model_registry import ModelDescription
from app.records.ids import is_id, new_id


@dataclass(frozen=True)
class JobResource(Generic[Answer]):
    """A kind of job, and what its records are told as."""

    kind: Kind
    answer: type[Answer]

    def make(
        self,
        deps: Dependencies,
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
            webhook=webhooks.create_webhook(deps, sent.webhook),
            metadata=sent.metadata,
            created_at=now,
            changed_at=now,
            expires_at=now + deps.settings.stem_retention,
        )
        return accept(deps, job)

    def get(self, deps: Dependencies, job_id: str) -> Job:
        """The record of the caller's job; raises `NotFound` for what is no id and what is another's, too."""
        if not is_id(job_id, self.kind.prefix):
            raise NotFound(f"There is no such {self.kind.name}.")
        return deps.caller.require_owned(deps.jobs.get(job_id), "job")

    def to_answer(self, deps: Dependencies, job: Job) -> Answer:
        """The job as clients see it."""
        return self._answer(deps, job, deps.jobs.position(job))

    async def poll(self, deps: Dependencies, caller: Caller, scope: Scope, job_id: str) -> PollResponse:
        """The caller's job as polls are told it, without a thread; raises as `find` does."""
        if not is_id(job_id, self.kind.prefix):
            raise NotFound(f"There is no such {self.kind.name}.")
        if not deps.url_signer.has_secret:
            await run_in_threadpool(deps.url_signer.load_secret)

        def render(job: Job, position: int) -> tuple[bytes, str]:
            answer = self._answer(deps, job, position)
            return answer.model_dump_json().encode(), self._etag(answer)

        told = await deps.poll_cache.get(scope, job_id, deps.url_signer.valid_until, render)
        caller.require_owned(told.job, "job")
        return told

    def page(
        self, deps: Dependencies, status: Status | None, limit: int, cursor: str | None
    ) -> tuple[list[Answer], str | None]:
        """The caller's jobs, the newest first, and the cursor of the next page.

        Raises `RequestInvalid` for what is no cursor.
        """
        if cursor is not None and not is_id(cursor, self.kind.prefix):
            raise RequestInvalid("The cursor is none that a page gave.")
        jobs, following = deps.jobs.newest(deps.caller.key_id, self.kind.name, limit, cursor, status)
        return [self.to_answer(deps, job) for job in jobs], following

    def delete(self, deps: Dependencies, job_id: str) -> None:
        """Delete a job, whatever its state, and what it stored."""
        job = deps.jobs.delete(self.get(deps, job_id).id)
        deps.storage.delete_prefix(output_folder(job.kind, job.id))

    def _answer(self, deps: Dependencies, job: Job, position: int) -> Answer:
        return self.answer.from_job(job, position, deps.url_signer.signer_for(job.owner))

    @staticmethod
    def _etag(answer: Answer) -> str:
        """Changes with everything but `progress` and `queue`, which change by themselves all the time."""
        told = answer.model_dump_json(exclude={"progress", "queue"})
        return f'"{hashlib.sha256(told.encode()).hexdigest()[:32]}"'


def accept(deps: Dependencies, job: Job) -> Job:
    """Make a checked job the caller's, charge its audio seconds, and put it in the line; all or nothing.

    Raises `QuotaExceeded`, `QueueFull`, and `NotFound` if one of its uploads is gone.
    """
    caller = deps.caller
    job = job.model_copy(update={"owner": caller.key_id, "weight": float(caller.priority)})
    seconds = UNKNOWN_SECONDS if job.audio_seconds is None else job.audio_seconds
    with deps.quotas.charge(caller.key_id, caller.allowance, seconds):
        job = deps.jobs.create(job)
    deps.metrics.created.labels(job.kind, job.model).inc()
    return job
