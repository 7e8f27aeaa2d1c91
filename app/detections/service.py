"""Detections: validation of a request, creation of its job, lookup of its timeline picture."""

from app.dependencies import Dependencies
from app.detections.schemas import DetectionAnswer, DetectionCreate
from app.job_api import validation
from app.job_api.resource import JobResource, options_of, request_of, require_unexpired
from app.jobs.kinds import DETECTION
from app.jobs.lifecycle import Job
from app.jobs.repository import QueuedJob
from app.records.detections import DetectionRequest, PictureRecord
from app.records.sizes import charged_seconds

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
    return DETECTIONS.create(
        deps,
        body,
        request,
        model,
        [audio.id],
        audio_seconds=audio.duration,
        charged_seconds=charged_seconds(validation.expected_seconds(audio.duration), audio.channels),
    )


def create_again(deps: Dependencies, job: Job) -> QueuedJob:
    """Create a job with the request of another one, which is complete. Raises `RecordUnreadable`, and as `create`."""
    request = request_of(job, DetectionRequest)
    body = DetectionCreate(
        audio_id=request.audio.audio_id,
        track=request.audio.track,
        threshold=request.threshold,
        top=request.top,
        **dict(options_of(job)),
    )
    return create(deps, body)


def find_picture(deps: Dependencies, job: Job) -> PictureRecord:
    """Return the stored picture of a timeline. Raises `NotFound`, and `StemsExpired` after its retention time."""
    result = DETECTIONS.result_of(job, "picture")
    require_unexpired(deps, job, "picture")
    return PictureRecord.model_validate(result["picture"])
