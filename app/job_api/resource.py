"""A kind of job as a REST resource: how its jobs are created, looked up, rendered, listed and deleted."""

import hashlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.types import Scope

from app.dependencies import Dependencies
from app.errors import (
    EarmarkError,
    NotFound,
    NotRetryable,
    RecordUnreadable,
    RequestInvalid,
    StemsExpired,
    UploadsExpired,
)
from app.http import access_log
from app.job_api import webhooks
from app.job_api.schemas import Answer, JobOptions
from app.jobs.deletion import delete_job
from app.jobs.kinds import Kind
from app.jobs.lifecycle import Job, Status, TargetState
from app.jobs.listing import record_key
from app.jobs.poll_cache import PollResponse
from app.jobs.repository import QueuedJob
from app.keys.callers import Caller
from app.model_registry.registry import ModelDescription
from app.records.ids import is_id, new_id

Record = TypeVar("Record", bound=BaseModel)


@dataclass(frozen=True)
class JobResource(Generic[Answer]):
    """One kind of job.

    answer: the schema of its representation. body: the schema of the JSON that creates one. body_for_upload: an example
    of that JSON in which `$response.body#/id` stands for an upload's id, for the OpenAPI links of an upload.
    """

    kind: Kind
    answer: type[Answer]
    body: type[JobOptions]
    body_for_upload: dict[str, Any]

    def create(
        self,
        deps: Dependencies,
        options: JobOptions,
        request: BaseModel,
        model: ModelDescription,
        audio_ids: Iterable[str],
        *,
        audio_seconds: float | None,
        charged_seconds: float,
        effort: float = 1.0,
        targets: Iterable[TargetState] = (),
    ) -> QueuedJob:
        """Create a job of the caller's for a validated request, charge its audio seconds and put it in the fair queue.

        audio_seconds: of the recordings that it processes; None where their headers do not tell. charged_seconds: what
        it costs the caller's quota. effort: see `Job`. All or nothing: raises `UrlRefused` and `RequestInvalid`
        (webhook), `QuotaExceeded`, `QueueFull`, `NotFound` if an upload is gone, and `StoreUnavailable` where the
        request is too large for the job's record.
        """
        now = deps.clock.now()
        caller = deps.caller
        job = Job(
            id=new_id(self.kind.prefix, now),
            kind=self.kind.name,
            owner=caller.key_id,
            weight=float(caller.priority),
            model=model.id,
            version_named="@" in (options.model or ""),
            request=request.model_dump(),
            audio_ids=list(dict.fromkeys(audio_ids)),
            audio_seconds=audio_seconds,
            charged_seconds=charged_seconds,
            effort=effort,
            targets=list(targets),
            webhook=webhooks.create_webhook(deps, options.webhook),
            metadata=options.metadata,
            created_at=now,
            changed_at=now,
            expires_at=now + deps.settings.stem_retention,
        )
        charge = deps.quotas.charge(caller.key_id, caller.allowance, charged_seconds)
        with charge, deps.budgets.count_refusal("kept_jobs"):
            job = deps.large_fields.store_request(job)
            try:
                queued = deps.jobs.create(job)
            except EarmarkError:
                deps.large_fields.discard_request(job)
                raise
        access_log.note_made(job.id)
        deps.metrics.created.labels(job.kind, job.model_name).inc()
        return queued

    def retry(
        self, deps: Dependencies, job_id: str, create_again: Callable[[Dependencies, Job], QueuedJob]
    ) -> QueuedJob:
        """Create a new job with the request of one that failed or was canceled; `create_again` calls `create`.

        Raises `NotRetryable`, `UploadsExpired` if an upload is gone, `NotFound` (the job), `RecordUnreadable`,
        `StoreUnavailable`, and the other errors of `create_again`.
        """
        job = deps.large_fields.load(self.get(deps, job_id))
        if job.status not in ("failed", "canceled"):
            raise NotRetryable(f"The {self.kind.name} is {job.status}; only a failed or canceled one can be retried.")
        try:
            return create_again(deps, job)
        except NotFound as error:  # also of an upload that is deleted while the job is created
            raise UploadsExpired(f"An upload of the {self.kind.name} is gone: create a new one.") from error

    def get(self, deps: Dependencies, job_id: str) -> Job:
        """Return the caller's job as its record has it, without large fields.

        Raises `NotFound` for a malformed id and for another key's job too; `RecordUnreadable`, `RecordTooNew`.
        """
        self.require_id(job_id)
        try:
            return deps.caller.require_owned(deps.jobs.get(job_id), "job")
        except RecordUnreadable:
            self._set_aside(deps, deps.caller, job_id)
            raise

    async def load(self, deps: Dependencies, job_id: str) -> Job:
        """Return the caller's complete job. Raises `NotFound` and `StoreUnavailable`."""
        return await deps.large_fields_cache.load(await run_in_threadpool(self.get, deps, job_id))

    async def poll(self, deps: Dependencies, caller: Caller, scope: Scope, job_id: str) -> PollResponse:
        """Return the rendered response to a poll of the caller's job, without a thread unless it is large.

        Raises `StoreUnavailable` and what `get` does.
        """
        if not deps.url_signer.is_ready:
            await run_in_threadpool(deps.url_signer.prepare)

        def render_complete(job: Job, position: int) -> tuple[bytes, str]:
            answer = self.render(deps, job, position)
            return answer.model_dump_json().encode(), _etag(answer)

        async def render(job: Job, position: int) -> tuple[bytes, str]:
            if not job.is_partial:
                return render_complete(job, position)
            caller.require_owned(job, "job")  # others must not learn whether the store answers
            return await run_in_threadpool(render_complete, await deps.large_fields_cache.load(job), position)

        try:
            response = await deps.poll_cache.get(scope, job_id, deps.url_signer.edition, render)
        except RecordUnreadable:
            await run_in_threadpool(self._set_aside, deps, caller, job_id)
            raise
        caller.require_owned(response.job, "job")
        return response

    def page(
        self, deps: Dependencies, status: Status | None, limit: int, cursor: str | None
    ) -> tuple[list[Job], str | None]:
        """Return a page of the caller's jobs, the newest first, and the cursor of the next page (None: there is none).

        Large fields are not loaded. Raises `RequestInvalid` for a malformed cursor.
        """
        if cursor is not None and not is_id(cursor, self.kind.prefix):
            raise RequestInvalid("The cursor is not one that a page returned.")
        return deps.jobs.listing.page(deps.caller.key_id, self.kind.name, limit, cursor, status)

    def delete(self, deps: Dependencies, job_id: str) -> None:
        """Delete the caller's job, in whatever state, and its stored output. Raises what `delete_job` does."""
        with suppress(RecordUnreadable):  # it can be deleted, and is the caller's
            self.get(deps, job_id)
        delete_job(deps.jobs, deps.storage, self.kind, job_id, deps.caller.key_id)

    def to_answer(self, deps: Dependencies, job: Job) -> Answer:
        """Return a complete job's representation for clients. Raises `RecordUnreadable`."""
        return self.render(deps, job, deps.jobs.fair_queue.position(job))

    def render(self, deps: Dependencies, job: Job, position: int) -> Answer:
        """Return the same for a job whose position in the fair queue is known."""
        try:
            return self.answer.from_job(job, position, deps.url_signer.signer_for(job.owner))
        except (ValueError, LookupError) as error:  # its request or its result does not fit its kind
            raise RecordUnreadable() from error

    def _set_aside(self, deps: Dependencies, caller: Caller, job_id: str) -> None:
        """Note an unreadable record. Raises `NotFound` for another key's, as for one that does not exist."""
        deps.jobs.quarantine.add(record_key(job_id))
        if not deps.jobs.listing.owns(caller.key_id, self.kind.name, job_id):
            raise NotFound("There is no such job.")

    def result_of(self, job: Job, output: str) -> dict[str, Any]:
        """Return the result of a job that succeeded. Raises `NotFound`; `output`: the result, in words."""
        if job.status != "succeeded" or job.result is None:
            raise NotFound(f"The {self.kind.name} is {job.status}; it has no {output}.")
        return job.result

    def require_id(self, job_id: str) -> None:
        """Raise `NotFound` for what is not an id of this kind."""
        if not is_id(job_id, self.kind.prefix):
            raise NotFound(f"There is no such {self.kind.name}.")


def options_of(job: Job) -> JobOptions:
    """Return the options with which a job was created; its model by id only if the request named the version."""
    webhook = None if job.webhook is None else job.webhook.model_dump()
    model = job.model if job.version_named else job.model_name
    return JobOptions.model_validate({"model": model, "webhook": webhook, "metadata": job.metadata})


def request_of(job: Job, schema: type[Record]) -> Record:
    """Return the request in a complete job's record. Raises `RecordUnreadable`."""
    try:
        return schema.model_validate(job.request)
    except ValueError as error:
        raise RecordUnreadable() from error


def require_unexpired(deps: Dependencies, job: Job, output: str) -> None:
    """Raise `StemsExpired` once the retention time of a job's output has passed, whether or not it was deleted yet."""
    if job.expired or (job.expires_at is not None and job.expires_at <= deps.clock.now()):
        raise StemsExpired(f"The retention time of the {output} has passed.")


def _etag(answer: BaseModel) -> str:
    """Return an ETag that ignores `progress` and `queue`, which change all the time by themselves."""
    content = answer.model_dump_json(exclude={"progress", "queue"})
    return f'"{hashlib.sha256(content.encode()).hexdigest()[:32]}"'
