"""Schemas that requests for jobs of every kind, and responses about them, share."""

from datetime import UTC, datetime
from typing import Annotated, Any, Generic, Self, TypeVar, get_args

from pydantic import BaseModel, Field, StringConstraints

from app.http.validation import RequestModel
from app.jobs.kinds import KINDS
from app.jobs.lifecycle import Job, JobError, Progress, Status, TerminalStatus
from app.keys.signed_urls import Sign
from app.model_registry.registry import ModelName
from app.outbound import LONGEST_URL
from app.records import ids
from app.records.shared import ModelRecord

AudioId = Annotated[str, StringConstraints(pattern=ids.pattern(ids.AUDIO))]
Metadata = Annotated[
    dict[Annotated[str, StringConstraints(max_length=64)], Annotated[str, StringConstraints(max_length=512)]],
    Field(max_length=16),
]


Track = Annotated[int, Field(ge=1, le=1000, description="audio track, from 1; default: the first that can be read")]


class AudioReference(RequestModel):
    """An upload, or one track of it."""

    audio_id: AudioId
    track: Track | None = None


class WebhookSent(RequestModel):
    """The address to notify when the job has finished, and in which states; by default in all."""

    url: Annotated[str, StringConstraints(min_length=1, max_length=LONGEST_URL)]
    events: list[TerminalStatus] = Field(
        default=list(get_args(TerminalStatus)), min_length=1, max_length=len(get_args(TerminalStatus))
    )


class JobOptions(RequestModel):
    """Options of any job. `model`: such as `base` or `base@1`; none: the server's default."""

    model: ModelName | None = None
    webhook: WebhookSent | None = None
    metadata: Metadata = Field(default={})


class Queue(BaseModel):
    """Its position in the queue: 1 is next, 0 is not waiting."""

    position: int


class JobAnswer(BaseModel):
    """A job of any kind."""

    id: str
    status: Status
    progress: Progress
    url: str
    events_url: str
    queue: Queue
    cancel_requested_at: datetime | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    expires_at: datetime | None
    warnings: list[str]
    error: JobError | None
    metadata: dict[str, str]
    model: ModelRecord

    @classmethod
    def from_job(cls, job: Job, position: int, sign: Sign) -> Self:
        """Return the representation of a record at this position in the queue; `sign` makes URLs that need no key.

        Raises RuntimeError for a record whose large fields are not loaded: they would seem empty.
        """
        if job.is_partial:
            raise RuntimeError(f"the large fields of {job.id} are not loaded")
        url = f"/v1/{KINDS[job.kind].folder}/{job.id}"
        return cls(
            id=job.id,
            status=job.status,
            progress=job.progress,
            url=sign(url),
            events_url=sign(f"{url}/events"),
            queue=Queue(position=position),
            cancel_requested_at=_time(job.cancel_requested_at),
            created_at=datetime.fromtimestamp(job.created_at, UTC),
            started_at=_time(job.started_at),
            finished_at=_time(job.finished_at),
            expires_at=_time(job.expires_at),
            warnings=job.warnings,
            error=job.error,
            metadata=job.metadata,
            **cls.kind_fields(job, url, sign),
        )

    @classmethod
    def kind_fields(cls, job: Job, url: str, sign: Sign) -> dict[str, Any]:
        """Return the fields that only its kind has, and `model`."""
        raise NotImplementedError


Answer = TypeVar("Answer", bound=JobAnswer)


class Page(BaseModel, Generic[Answer]):
    """A page of a list, the newest first; `next_cursor` is for the next one, if `has_more`."""

    data: list[Answer]
    next_cursor: str | None
    has_more: bool


def waiting_for(job: Job, requested: ModelRecord) -> ModelRecord:
    """Return the model that an unfinished job is for: another version than at its creation, if it was moved."""
    name, _, version = job.model.partition("@")
    return ModelRecord(name=name, version=version) if version else requested


def result_metrics(job: Job, metrics: dict[str, float] | None) -> dict[str, float] | None:
    """Return a result's metrics with the seconds that its job waited; None while there is no result."""
    if metrics is None:
        return None
    queued = {} if job.started_at is None else {"queued": round(max(0.0, job.started_at - job.created_at), 3)}
    return queued | metrics


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
