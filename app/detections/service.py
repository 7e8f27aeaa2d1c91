"""Detections: a request checked and made a job; a picture found."""

import time

from app.dependencies import Dependencies
from app.detections.schemas import DetectionAnswer, DetectionCreate
from app.errors import NotFound, StemsExpired
from app.job_api import validation
from app.job_api.resource import JobResource
from app.jobs.kinds import DETECTION
from app.jobs.lifecycle import Job
from app.records.detections import DetectionRequest, DetectionResult, PictureRecord

DETECTIONS = JobResource(DETECTION, DetectionAnswer)


def create(deps: Dependencies, sent: DetectionCreate) -> Job:
    """Check a request and put it on the queue.

    Raises `ModelUnavailable`, `NotFound` (the upload), and what `accept` does.
    """
    model = validation.model(deps, sent.model)
    audio = validation.find_recording(deps, sent.audio_id, "audio_id")
    request = DetectionRequest(
        audio=validation.recording_record(audio),
        model=validation.model_record(model),
        threshold=sent.threshold,
        top=sent.top,
    )
    return DETECTIONS.make(deps, request, sent, model, [audio.id], audio_seconds=audio.duration)


def find_picture(deps: Dependencies, job_id: str) -> PictureRecord:
    """The picture of a timeline; raises `NotFound`, and `StemsExpired` once it was swept."""
    job = DETECTIONS.get(deps, job_id)
    if job.status != "succeeded" or job.result is None:
        raise NotFound(f"The detection is {job.status}; it has no picture.")
    if job.expired or (job.expires_at is not None and job.expires_at <= time.time()):
        raise StemsExpired("The picture was kept as long as promised.")
    return DetectionResult.model_validate(job.result).picture
