"""Separations: validation of a request, creation of its job, lookup of its stems."""

from collections.abc import AsyncIterator

from app.dependencies import Dependencies
from app.errors import NotFound
from app.job_api import validation as job_validation
from app.job_api.resource import JobResource, require_unexpired
from app.jobs.kinds import SEPARATION
from app.jobs.lifecycle import Job, TargetState
from app.jobs.repository import QueuedJob
from app.records.separations import SeparationRequest, SeparationResult, StemRecord
from app.separations import archive, validation
from app.separations.schemas import SeparationAnswer, SeparationCreate
from app.separations.targets import build_target, upload_ids

SEPARATIONS = JobResource(
    SEPARATION,
    SeparationAnswer,
    SeparationCreate,
    {"mixture": {"audio_id": "$response.body#/id"}, "targets": [{"label": "Dog"}]},
)


def create(deps: Dependencies, body: SeparationCreate) -> QueuedJob:
    """Validate a request and create its job.

    Raises `ModelUnavailable`, `NotFound` (an upload, a saved query), `QueryNotReady`, `RequestInvalid` and its
    subclasses, and what `JobResource.create` raises.
    """
    requested = body.targets or []
    validation.require_target_count(len(requested), deps.settings, "targets")
    auto = None if body.auto is None else validation.auto_record(body.auto, deps.settings)
    model = deps.model_registry.resolve(body.model)
    mixture = job_validation.find_recording(deps, body.mixture.audio_id, "mixture", "audio_id")
    mixture = job_validation.choose_track(mixture, body.mixture.track, "mixture", "track")
    output = validation.output_record(body.output, mixture)
    targets = [build_target(deps, model, mixture, target, index) for index, target in enumerate(requested)]
    validation.require_distinct_names([target.name for target in targets])
    request = SeparationRequest(
        mixture=job_validation.recording_record(mixture, body.mixture.track),
        model=job_validation.model_record(model),
        targets=targets,
        auto=auto,
        output=output,
    )
    return SEPARATIONS.create(
        deps,
        body,
        request,
        model,
        [mixture.id, *(audio_id for target in targets for audio_id in upload_ids(target))],
        audio_seconds=mixture.duration,
        targets=[TargetState(name=target.name, label=target.label) for target in targets],
    )


def find_stem(deps: Dependencies, job_id: str, name: str) -> StemRecord:
    """Return a published stem. Raises `NotFound`, and `StemsExpired` after the stems' retention time."""
    job = SEPARATIONS.get(deps, job_id)
    for stem in _stems_of(job):
        if stem.name == name:
            require_unexpired(job, "stems")
            return stem
    raise NotFound("There is no such stem.")


def stream_archive(deps: Dependencies, job_id: str) -> AsyncIterator[bytes]:
    """Return all published stems as the blocks of a zip.

    Raises `NotFound`, `StemsExpired`, `StoreUnavailable` before the first block.
    """
    job = SEPARATIONS.get(deps, job_id)
    stems = _stems_of(job)
    require_unexpired(job, "stems")
    for stem in stems:
        deps.storage.size(stem.key)
    return archive.stream(deps.storage, stems, job.finished_at or job.created_at)


def _stems_of(job: Job) -> list[StemRecord]:
    return SeparationResult.model_validate(SEPARATIONS.result_of(job, "stems")).stems
