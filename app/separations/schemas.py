"""Separations as clients send and see them. Later kinds of query become fields here; until then they are refused."""

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BaseModel, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from app import ids
from app.keys.signatures import Sign
from app.lifecycle import Job, JobError, Progress, Status, TargetState
from app.sent import Sent
from app.separations.records import Format, MixtureRecord, ModelRecord, SeparationRequest, SeparationResult

NAME = r"^[A-Za-z0-9][A-Za-z0-9 _.-]{0,63}$"
AudioId = Annotated[str, StringConstraints(pattern=ids.pattern(ids.AUDIO))]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Metadata = Annotated[
    dict[Annotated[str, StringConstraints(max_length=64)], Annotated[str, StringConstraints(max_length=512)]],
    Field(max_length=16),
]


class AudioReference(Sent):
    """An upload."""

    audio_id: AudioId


class SpanSent(Sent):
    """A stretch of the mixture, in seconds."""

    start: Seconds
    end: Seconds

    @model_validator(mode="after")
    def _has_length(self) -> "SpanSent":
        if self.end <= self.start:
            raise PydanticCustomError("span_empty", "A span must end after it starts")
        return self


class Target(Sent):
    """One sound to take out, asked for in exactly one way; a `label` may go without a name and lends its slug."""

    name: Annotated[str, StringConstraints(pattern=NAME)] | None = None
    examples: Annotated[list[AudioReference], Field(min_length=1)] | None = None
    label: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = None
    spans: Annotated[list[SpanSent], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _is_asked_for_once(self) -> "Target":
        if sum(way is not None for way in (self.examples, self.label, self.spans)) != 1:
            raise PydanticCustomError("one_query", "Give exactly one of examples, label and spans")
        if self.name is None and self.label is None:
            raise PydanticCustomError("name_missing", "Give the target a name")
        return self


class Output(Sent):
    """How stems are written. `bit_depth`: wav 16, 24 or 32 (float, default), flac 16 or 24 (default)."""

    format: Format = "flac"
    bit_depth: int | None = None
    residual: bool = True
    joint: bool = False
    gate: bool = True


class Options(Sent):
    """All of a request but its recordings: the form's field `options`."""

    output: Output = Output()
    model: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}(@[A-Za-z0-9._-]{1,32})?$")] | None = (
        None
    )
    metadata: Metadata = Field(default={})


class SeparationCreate(Options):
    """A separation to be made: a mixture, and what to take out of it."""

    mixture: AudioReference
    targets: Annotated[list[Target], Field(min_length=1)]


class Queue(BaseModel):
    """Its place in the line: 1 is next, 0 is none."""

    position: int


class StemAnswer(BaseModel):
    """A stem. Peak: linear, full scale is 1; loudness: LUFS."""

    name: str
    url: str
    content_type: str
    bytes: int
    sha256: str
    peak: float
    loudness: float | None


class SeparationAnswer(BaseModel):
    """A separation as it stands."""

    id: str
    status: Status
    progress: Progress
    url: str
    events_url: str
    archive_url: str
    queue: Queue
    cancel_requested_at: datetime | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    expires_at: datetime
    mixture: MixtureRecord
    targets: list[TargetState]
    stems: list[StemAnswer]
    gain: float
    model: ModelRecord
    metrics: dict[str, float] | None
    warnings: list[str]
    error: JobError | None
    metadata: dict[str, str]

    @classmethod
    def of(cls, job: Job, position: int, sign: Sign) -> "SeparationAnswer":
        """The answer for a record, at this place in the line."""
        request = SeparationRequest.model_validate(job.request)
        result = SeparationResult.model_validate(job.result) if job.result is not None else None
        url = f"/v1/separations/{job.id}"
        stems: list[StemAnswer] = []
        if result is not None and not job.expired:
            stems = [
                StemAnswer(url=sign(f"{url}/stems/{stem.name.replace(' ', '%20')}"), **stem.model_dump(exclude={"key"}))
                for stem in result.stems
            ]
        return cls(
            id=job.id,
            status=job.status,
            progress=job.progress,
            url=sign(url),
            events_url=sign(f"{url}/events"),
            archive_url=sign(f"{url}/archive"),
            queue=Queue(position=position),
            cancel_requested_at=_time(job.cancel_requested_at),
            created_at=datetime.fromtimestamp(job.created_at, UTC),
            started_at=_time(job.started_at),
            finished_at=_time(job.finished_at),
            expires_at=datetime.fromtimestamp(job.expires_at, UTC),
            mixture=result.mixture if result is not None else request.mixture,
            targets=job.targets,
            stems=stems,
            gain=result.gain if result is not None else 1.0,
            model=result.model if result is not None else request.model,
            metrics=_metrics(job, result),
            warnings=job.warnings,
            error=job.error,
            metadata=job.metadata,
        )


class SeparationsAnswer(BaseModel):
    """A page of separations, the newest first; `next_cursor` leads to the next one, if `has_more`."""

    data: list[SeparationAnswer]
    next_cursor: str | None
    has_more: bool


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _metrics(job: Job, result: SeparationResult | None) -> dict[str, Any] | None:
    if result is None:
        return None
    queued = {} if job.started_at is None else {"queued": round(job.started_at - job.created_at, 3)}
    return queued | result.metrics
