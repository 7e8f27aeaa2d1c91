"""Detections: validation of a request, creation of its job, lookup of its timeline picture."""

from app.dependencies import Dependencies
from app.detections.schemas import DetectionAnswer, DetectionCreate
from app.job_api import validation
from app.job_api.resource import JobResource, require_unexpired
from app.jobs.kinds import DETECTION
from app.jobs.lifecycle import Job
from app.jobs.repository import QueuedJob
from app.records.detections import DetectionRequest, PictureRecord

DETECTIONS = JobResource(DETECTION, DetectionAnswer, DetectionCreate, {"audio_id": "$response.body#/id"})


def create(deps: Dependencies, body: DetectionCreate) -> QueuedJob:
    """Validate a request and create its job.

    Raises `ModelUnavailable`, `NotFound` (the upload), and what `JobResource.create` raises.
    """
    model = deps.model_registry.resolve(body.model)
    audio = validation.find_recording(deps, body.audio_id, "audio_id")
    audio = validation.choose_track(audio, body.track, "track")
    request = DetectionRequest(
        audio=validation.recording_record(audio, body.track),
        model=validation.model_record(model),
        threshold=body.threshold,
        top=body.top,
    )
    return DETECTIONS.create(deps, body, request, model, [audio.id], audio_seconds=audio.duration)


def find_picture(job: Job) -> PictureRecord:
    """Return the stored picture of a timeline. Raises `NotFound`, and `StemsExpired` after its retention time."""
    result = DETECTIONS.result_of(job, "picture")
    require_unexpired(job, "picture")
    return PictureRecord.model_validate(result["picture"])
