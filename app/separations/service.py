"""Separations: a request checked and made a job; a stem found."""

import time
from collections.abc import AsyncIterator

from app.dependencies import Dependencies
from app.errors import NotFound, StemsExpired
from app.job_api import validation
from app.job_api.resource import JobResource
from app.jobs.kinds import SEPARATION
from app.jobs.lifecycle import Job, TargetState
from app.records.separations import SeparationRequest, SeparationResult, StemRecord
from app.separations import archive
from app.separations import validation as own
from app.separations.schemas import SeparationAnswer, SeparationCreate
from app.separations.targets import build_target, upload_ids

SEPARATIONS = JobResource(SEPARATION, SeparationAnswer)


def create(deps: Dependencies, sent: SeparationCreate) -> Job:
    """Check a request and put it on the queue.

    Raises `ModelUnavailable`, `NotFound` (an upload, a saved query), `QueryNotReady`, `RequestInvalid` and its kin,
    and what `accept` does.
    """
    asked = sent.targets or []
    own.count(len(asked), deps.settings, "targets")
    auto = None if sent.auto is None else own.auto(sent.auto, deps.settings)
    model = validation.model(deps, sent.model)
    mixture = validation.find_recording(deps, sent.mixture.audio_id, "mixture", "audio_id")
    output = own.output(sent.output, mixture)
    targets = [build_target(deps, model, mixture, one, index) for index, one in enumerate(asked)]
    own.names([one.name for one in targets])
    request = SeparationRequest(
        mixture=validation.recording_record(mixture),
        model=validation.model_record(model),
        targets=targets,
        auto=auto,
        output=output,
    )
    used = [mixture.id, *(audio_id for one in targets for audio_id in upload_ids(one))]
    states = [TargetState(name=one.name, label=one.label) for one in targets]
    return SEPARATIONS.make(deps, request, sent, model, used, audio_seconds=mixture.duration, targets=states)


def stem(deps: Dependencies, job_id: str, name: str) -> StemRecord:
    """A published stem; raises `NotFound`, and `StemsExpired` once they were swept."""
    job = SEPARATIONS.get(deps, job_id)
    for found in _published_stems(job):
        if found.name == name:
            _require_unexpired(job)
            return found
    raise NotFound("There is no such stem.")


def stream_archive(deps: Dependencies, job_id: str) -> AsyncIterator[bytes]:
    """All published stems as a zip. Raises `NotFound`, `StemsExpired`, `StoreUnavailable` before its first byte."""
    job = SEPARATIONS.get(deps, job_id)
    stems = _published_stems(job)
    _require_unexpired(job)
    for found in stems:
        deps.storage.size(found.key)
    return archive.stream(deps.storage, stems, job.finished_at or job.created_at)


def _published_stems(job: Job) -> list[StemRecord]:
    if job.status != "succeeded" or job.result is None:
        raise NotFound(f"The separation is {job.status}; it has no stems.")
    return SeparationResult.model_validate(job.result).stems


def _require_unexpired(job: Job) -> None:
    if job.expired or (job.expires_at is not None and job.expires_at <= time.time()):
        raise StemsExpired("The stems were kept as long as promised.")
