"""Separations as clients send and see them."""

from typing import Annotated, Any

from pydantic import BaseModel, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from app.http.validation import RequestModel
from app.job_api.schemas import AudioReference, JobAnswer, JobOptions, ModelName, result_metrics
from app.jobs.lifecycle import Job, TargetState
from app.keys.signed_urls import Sign
from app.records import ids
from app.records.separations import Format, SeparationRequest, SeparationResult
from app.records.shared import RecordingRecord

NAME = r"^[A-Za-z0-9][A-Za-z0-9 _.-]{0,63}$"
_LARGEST = 1e6  # of an embedding's numbers: far beyond any network's, and far from overflow
_MANY = 1024  # targets, spans or examples: far beyond any setting; what lies behind is not looked at
_NUMBERS = 65536  # of an embedding: far beyond any network's
_WAYS = ("examples", "label", "spans", "query_id", "embedding")
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Label = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Number = Annotated[float, Field(ge=-_LARGEST, le=_LARGEST, allow_inf_nan=False)]


class SpanSent(RequestModel):
    """A stretch of the mixture, in seconds."""

    start: Seconds
    end: Seconds

    @model_validator(mode="after")
    def _has_length(self) -> "SpanSent":
        if self.end <= self.start:
            raise PydanticCustomError("span_empty", "A span must end after it starts")
        return self


class Target(RequestModel):
    """One sound to take out, asked for in exactly one way; a `label` may go without a name and lends its slug.

    `query_id`: a saved query that has succeeded. `embedding`: a query's numbers, made by `model`. `not_examples` or
    `not_label`: what it is not, though it sounds like it.
    """

    name: Annotated[str, StringConstraints(pattern=NAME)] | None = None
    examples: Annotated[list[AudioReference], Field(min_length=1, max_length=_MANY)] | None = None
    label: Label | None = None
    spans: Annotated[list[SpanSent], Field(min_length=1, max_length=_MANY)] | None = None
    query_id: Annotated[str, StringConstraints(pattern=ids.pattern(ids.QUERY))] | None = None
    embedding: Annotated[list[Number], Field(min_length=1, max_length=_NUMBERS)] | None = None
    model: ModelName | None = None
    not_examples: Annotated[list[AudioReference], Field(min_length=1, max_length=_MANY)] | None = None
    not_label: Label | None = None

    @model_validator(mode="after")
    def _is_asked_for_once(self) -> "Target":
        if sum(getattr(self, way) is not None for way in _WAYS) != 1:
            raise PydanticCustomError("one_query", f"Give exactly one of {', '.join(_WAYS[:-1])} and {_WAYS[-1]}")
        if self.name is None and self.label is None:
            raise PydanticCustomError("name_missing", "Give the target a name")
        if (self.embedding is None) != (self.model is None):
            raise PydanticCustomError("embedding_model", "An embedding comes with its model, and nothing else does")
        if self.not_examples is not None and self.not_label is not None:
            raise PydanticCustomError("one_negative", "Give at most one of not_examples and not_label")
        return self


class Auto(RequestModel):
    """Targets that are found: every class heard with a probability of `threshold`, the surest first."""

    max_targets: Annotated[int, Field(ge=1)] = 8
    threshold: Annotated[float, Field(ge=0.01, le=1, allow_inf_nan=False)] = 0.3


class Output(RequestModel):
    """How stems are written. `bit_depth`: wav 16, 24 or 32 (float, default), flac 16 or 24 (default)."""

    format: Format = "flac"
    bit_depth: int | None = None
    residual: bool = True
    joint: bool = False
    gate: bool = True


class Options(JobOptions):
    """All of a request but its recordings: the form's field `options`."""

    output: Output = Output()
    auto: Auto | None = None


class SeparationCreate(Options):
    """A separation to be made: a mixture, and what to take out of it, by `targets` or by `auto`."""

    mixture: AudioReference
    targets: Annotated[list[Target], Field(min_length=1, max_length=_MANY)] | None = None

    @model_validator(mode="after")
    def _is_asked_for(self) -> "SeparationCreate":
        if (self.targets is None) == (self.auto is None):
            raise PydanticCustomError("targets_or_auto", "Give exactly one of targets and auto")
        return self


class StemAnswer(BaseModel):
    """A stem. Peak: linear, full scale is 1; loudness: LUFS."""

    name: str
    url: str
    content_type: str
    bytes: int
    sha256: str
    peak: float
    loudness: float | None


class SeparationAnswer(JobAnswer):
    """A separation as it stands. `gain`: by which the stems and the mixture were multiplied, so that nothing clips."""

    archive_url: str
    mixture: RecordingRecord
    targets: list[TargetState]
    stems: list[StemAnswer]
    gain: float
    metrics: dict[str, float] | None

    @classmethod
    def kind_fields(cls, job: Job, url: str, sign: Sign) -> dict[str, Any]:
        request = SeparationRequest.model_validate(job.request)
        result = SeparationResult.model_validate(job.result) if job.result is not None else None
        return {
            "archive_url": sign(f"{url}/archive"),
            "mixture": result.mixture if result is not None else request.mixture,
            "targets": job.targets,
            "stems": [] if result is None or job.expired else _stems(result, url, sign),
            "gain": result.gain if result is not None else 1.0,
            "model": result.model if result is not None else request.model,
            "metrics": result_metrics(job, result.metrics if result is not None else None),
        }


def _stems(result: SeparationResult, url: str, sign: Sign) -> list[StemAnswer]:
    return [
        StemAnswer(url=sign(f"{url}/stems/{stem.name.replace(' ', '%20')}"), **stem.model_dump(exclude={"key"}))
        for stem in result.stems
    ]
