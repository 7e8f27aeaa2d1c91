"""Schemas of detections: requests and responses."""

from typing import Annotated, Any

from pydantic import Field

from app.job_api.schemas import AudioId, JobAnswer, JobOptions, Track, result_metrics, waiting_for
from app.jobs.lifecycle import Job
from app.keys.signed_urls import Sign
from app.records.detections import DetectionRequest, DetectionResult, EventRecord, TagRecord
from app.records.shared import RecordingRecord

_CLASSES = 527  # of AudioSet


class DetectionOptions(JobOptions):
    """All of a request but its recording: the form's field `options`.

    `threshold`: the probability that an event must reach; it ends below half of that. `top`: the number of tags.
    """

    threshold: Annotated[float, Field(ge=0.01, le=1, allow_inf_nan=False)] = 0.2
    top: Annotated[int, Field(ge=1, le=_CLASSES)] = 10
    track: Track | None = None


class DetectionCreate(DetectionOptions):
    """A recording in which to detect sounds."""

    audio_id: AudioId


class DetectionAnswer(JobAnswer):
    """The classes that sound in a recording, and when.

    `tags`: the likeliest classes, whatever their probability; `events`: where classes reach the threshold, in order of
    time; `timeline_url`: a picture of both.
    """

    timeline_url: str
    audio: RecordingRecord
    threshold: float
    top: int
    tags: list[TagRecord]
    events: list[EventRecord]
    metrics: dict[str, float] | None

    @classmethod
    def kind_fields(cls, job: Job, url: str, sign: Sign) -> dict[str, Any]:
        request = DetectionRequest.model_validate(job.request)
        result = DetectionResult.model_validate(job.result) if job.result is not None else None
        return {
            "timeline_url": sign(f"{url}/timeline.png"),
            "audio": result.audio if result is not None else request.audio,
            "threshold": request.threshold,
            "top": request.top,
            "tags": result.tags if result is not None else [],
            "events": result.events if result is not None else [],
            "model": result.model if result is not None else waiting_for(job, request.model),
            "metrics": result_metrics(job, result.metrics if result is not None else None),
        }
