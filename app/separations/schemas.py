"""Schemas of separations: requests and responses."""

from typing import Annotated, Any
from urllib.parse import quote

from pydantic import AfterValidator, BaseModel, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from app.http.validation import RequestModel
from app.job_api.schemas import AudioReference, JobAnswer, JobOptions, result_metrics, waiting_for
from app.jobs.lifecycle import Job, TargetState
from app.keys.signed_urls import Sign
from app.model_registry.registry import ModelName
from app.records import ids
from app.records.separations import Format, Quality, SeparationRequest, SeparationResult, StemRecord
from app.records.shared import RecordingRecord
from app.separations import names

_MAX_NUMBER = 1e6  # of an embedding: far beyond any network's, and far from overflow
_MAX_ITEMS = 1024  # targets, spans or examples: far beyond any setting; a longer list is not validated item by item
_MAX_EMBEDDING_SIZE = 65536  # far beyond any network's
_NAME_DESCRIPTION = "printable text without slashes; distinct from those of other targets, whatever the case of letters"


def _normalize_name(name: str) -> str:
    try:
        return names.normalize(name)
    except ValueError as error:
        raise PydanticCustomError("name_invalid", "{reason}", {"reason": str(error)}) from error


Name = Annotated[
    str,
    AfterValidator(_normalize_name),
    Field(json_schema_extra={"minLength": 1, "maxLength": names.MAX_NAME, "description": _NAME_DESCRIPTION}),
]
_QUERY_FIELDS = ("examples", "label", "text", "spans", "query_id", "embedding")
_NAMES = {"label", "text"}  # of a sound: either may stand beside examples of it
_NAMING = {*_NAMES, "query_id"}  # what a target's name can be made of
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Words = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Number = Annotated[float, Field(ge=-_MAX_NUMBER, le=_MAX_NUMBER, allow_inf_nan=False)]


class SpanSent(RequestModel):
    """A stretch of the mixture, in seconds, of at least 0.1 s."""

    start: Seconds
    end: Seconds

    @model_validator(mode="after")
    def _require_length(self) -> "SpanSent":
        if self.end <= self.start:
            raise PydanticCustomError("span_empty", "A span must end after it starts")
        return self


class Target(RequestModel):
    """One sound to separate, queried in exactly one way, or by examples and by what they are (`label` or `text`); the
    name of a target with a `label` or a `text` defaults to its slug, with a `query_id` to that of the saved query.

    `examples`: recordings of the sound, of at least 0.1 s each. `spans`: where it is heard in the mixture.
    `label`: a class's name or slug; `GET /v1/labels` has them, and finds them by other words.
    `text`: a sound in words of your own, such as `a dog barking`; it means one class, or a weighted mean of close ones.
    `query_id`: a saved query that has succeeded. `embedding`: a query's numbers, made by `model`. `not_examples` or
    `not_label`: a negative query, a similar sound that the target is not.
    """

    name: Name | None = None
    examples: Annotated[list[AudioReference], Field(min_length=1, max_length=_MAX_ITEMS)] | None = None
    label: Words | None = None
    text: Words | None = None
    spans: Annotated[list[SpanSent], Field(min_length=1, max_length=_MAX_ITEMS)] | None = None
    query_id: Annotated[str, StringConstraints(pattern=ids.pattern(ids.QUERY))] | None = None
    embedding: Annotated[list[Number], Field(min_length=1, max_length=_MAX_EMBEDDING_SIZE)] | None = None
    model: ModelName | None = None
    not_examples: Annotated[list[AudioReference], Field(min_length=1, max_length=_MAX_ITEMS)] | None = None
    not_label: Words | None = None

    @model_validator(mode="after")
    def _require_one_query(self) -> "Target":
        given = {field for field in _QUERY_FIELDS if getattr(self, field) is not None}
        if len(given) != 1 and not (len(given) == 2 and "examples" in given and given & _NAMES):
            raise PydanticCustomError(
                "one_query",
                f"Give exactly one of {', '.join(_QUERY_FIELDS[:-1])} and {_QUERY_FIELDS[-1]}, or examples with a "
                "label or a text",
            )
        if self.name is None and not given & _NAMING:
            raise PydanticCustomError("name_missing", "Give the target a name")
        if (self.embedding is None) != (self.model is None):
            raise PydanticCustomError("embedding_model", "Give model with embedding, and only with it")
        if self.not_examples is not None and self.not_label is not None:
            raise PydanticCustomError("one_negative", "Give at most one of not_examples and not_label")
        return self


class Auto(RequestModel):
    """Targets found by detection: every class with a probability of at least `threshold`, the likeliest first."""

    max_targets: Annotated[int, Field(ge=1)] = 8
    threshold: Annotated[float, Field(ge=0.01, le=1, allow_inf_nan=False)] = 0.3


class Output(RequestModel):
    """Format of the stems. `bit_depth`: wav 16, 24 or 32 (float, default), flac 16 or 24 (default). `quality` high: the
    mean of several estimates, which takes and is charged several times as much (`GET /v1/limits`)."""

    format: Format = "flac"
    bit_depth: int | None = None
    residual: bool = True
    joint: bool = False
    gate: bool = True
    quality: Quality = "standard"


class Options(JobOptions):
    """All of a request but its recordings and targets: the form's field `options`."""

    output: Output = Output()
    auto: Auto | None = None


class SeparationCreate(Options):
    """A mixture, and the sounds to separate from it, by `targets` or by `auto`."""

    mixture: AudioReference
    targets: Annotated[list[Target], Field(min_length=1, max_length=_MAX_ITEMS)] | None = None

    @model_validator(mode="after")
    def _require_targets_or_auto(self) -> "SeparationCreate":
        if (self.targets is None) == (self.auto is None):
            raise PydanticCustomError("targets_or_auto", "Give exactly one of targets and auto")
        return self


class StemAnswer(BaseModel):
    """A stem, or the residual: what remains of the mixture. Peak: linear, full scale is 1; loudness: LUFS, null if it
    is silent."""

    name: str
    url: str
    peaks_url: str
    spectrogram_url: str
    content_type: str
    bytes: int
    sha256: str
    peak: float
    loudness: float | None


class SeparationAnswer(JobAnswer):
    """A separation. `gain`: the factor applied to all stems and the mixture so that nothing clips. `metrics`: seconds
    of its stages, and figures of the computation; null until it has succeeded."""

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
            "model": result.model if result is not None else waiting_for(job, request.model),
            "metrics": result_metrics(job, result.metrics if result is not None else None),
        }


def _stems(result: SeparationResult, url: str, sign: Sign) -> list[StemAnswer]:
    return [_stem(stem, f"{url}/stems/{quote(stem.name, safe='')}", sign) for stem in result.stems]


def _stem(stem: StemRecord, url: str, sign: Sign) -> StemAnswer:
    return StemAnswer(
        url=sign(url),
        peaks_url=sign(f"{url}/peaks"),
        spectrogram_url=sign(f"{url}/spectrogram"),
        **stem.model_dump(exclude={"key"}),
    )
