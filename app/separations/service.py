"""Separations: a request checked and made a job; a stem found."""

import time
from collections.abc import AsyncIterator

from app.dependencies import Parts
from app.errors import NotFound, StemsExpired
from app.job_api import validation
from app.job_api.resource import Resource
from app.jobs.kinds import SEPARATION
from app.jobs.lifecycle import Job, TargetState
from app.records.separations import SeparationRequest, SeparationResult, StemRecord
from app.separations import archive
from app.separations import validation as own
from app.separations.schemas import SeparationAnswer, SeparationCreate
from app.separations.targets import target, uploads

SEPARATIONS = Resource(SEPARATION, SeparationAnswer)


def create(parts: Parts, sent: SeparationCreate) -> Job:
    """Check a request and put it on the queue.

    Raises `ModelUnavailable`, `NotFound` (an upload, a saved query), `QueryNotReady`, `RequestInvalid` and its kin,
    and what `accept` does.
    """
    asked = sent.targets or []
    own.count(len(asked), parts.settings, "targets")
    auto = None if sent.auto is None else own.auto(sent.auto, parts.settings)
    model = validation.model(parts, sent.model)
    mixture = validation.recording(parts, sent.mixture.audio_id, "mixture", "audio_id")
    output = own.output(sent.output, mixture)
    targets = [target(parts, model, mixture, one, index) for index, one in enumerate(asked)]
    own.names([one.name for one in targets])
    request = SeparationRequest(
        mixture=validation.recording_record(mixture),
        model=validation.model_record(model),
        targets=targets,
        auto=auto,
        output=output,
    )
    used = [mixture.id, *(audio_id for one in targets for audio_id in uploads(one))]
    states = [TargetState(name=one.name, label=one.label) for one in targets]
    return SEPARATIONS.make(parts, request, sent, model, used, audio_seconds=mixture.duration, targets=states)


def stem(parts: Parts, job_id: str, name: str) -> StemRecord:
    """A published stem; raises `NotFound`, and `StemsExpired` once they were swept."""
    job = SEPARATIONS.find(parts, job_id)
    for found in _published(job):
        if found.name == name:
            _kept(job)
            return found
    raise NotFound("There is no such stem.")


def archived(parts: Parts, job_id: str) -> AsyncIterator[bytes]:
    """All published stems as a zip. Raises `NotFound`, `StemsExpired`, `StoreUnavailable` before its first byte."""
    job = SEPARATIONS.find(parts, job_id)
    stems = _published(job)
    _kept(job)
    for found in stems:
        parts.storage.size(found.key)
    return archive.stream(parts.storage, stems, job.finished_at or job.created_at)


def _published(job: Job) -> list[StemRecord]:
    if job.status != "succeeded" or job.result is None:
        raise NotFound(f"The separation is {job.status}; it has no stems.")
    return SeparationResult.model_validate(job.result).stems


def _kept(job: Job) -> None:
    if job.expired or (job.expires_at is not None and job.expires_at <= time.time()):
        raise StemsExpired("The stems were kept as long as promised.")
