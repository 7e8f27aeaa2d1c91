"""Separations: validation of a request, creation of its job, lookup of its stems."""

import unicodedata
from collections.abc import AsyncIterator

from app.dependencies import Dependencies
from app.errors import NotFound
from app.job_api import validation as job_validation
from app.job_api.resource import JobResource, options_of, request_of, require_unexpired
from app.job_api.schemas import JobOptions
from app.jobs.kinds import SEPARATION
from app.jobs.lifecycle import Job
from app.jobs.repository import QueuedJob
from app.model_registry.registry import ModelDescription
from app.records.audio import Audio
from app.records.separations import SeparationRequest, SeparationResult, StemRecord
from app.records.sizes import SeparationSize
from app.separations import archive, validation
from app.separations.file_names import file_names, source_name
from app.separations.schemas import SeparationAnswer, SeparationCreate
from app.separations.targets import build_target, initial_state, require_usable, upload_ids

SEPARATIONS = JobResource(
    SEPARATION,
    SeparationAnswer,
    SeparationCreate,
    {"mixture": {"audio_id": "$response.body#/id"}, "targets": [{"label": "Dog"}]},
)


def create(deps: Dependencies, body: SeparationCreate) -> QueuedJob:
    """Validate a request and create its job.

    Raises `ModelUnavailable`, `NotFound` (an upload, a saved query), `QueryNotReady`, `RequestInvalid` and its
    subclasses, `RequestTooLarge`, and what `JobResource.create` raises.
    """
    requested = body.targets or []
    validation.require_target_count(len(requested), deps.settings, "targets")
    auto = None if body.auto is None else validation.auto_record(body.auto, deps.settings)
    model = deps.model_registry.resolve(body.model)
    mixture = job_validation.find_recording(deps, body.mixture.audio_id, "mixture", "audio_id")
    mixture = job_validation.choose_track(mixture, body.mixture.track, "mixture", "track")
    output = validation.output_record(body.output, mixture)
    seconds = job_validation.exact_duration(mixture, body.mixture.track)
    targets = [build_target(deps, model, seconds, target, index) for index, target in enumerate(requested)]
    validation.require_distinct_names([target.name for target in targets])
    request = SeparationRequest(
        mixture=job_validation.recording_record(mixture, body.mixture.track),
        model=job_validation.model_record(model),
        targets=targets,
        auto=auto,
        output=output,
        source=mixture.filename,
    )
    return _create(deps, body, request, model, mixture)


def create_again(deps: Dependencies, job: Job) -> QueuedJob:
    """Create a job with the request of another one, which is complete; its targets must fit the model as it is now.

    Raises `RecordUnreadable`, `QueryModelMismatch`, and as `create`.
    """
    request = request_of(job, SeparationRequest)
    validation.require_target_count(len(request.targets), deps.settings, "targets")
    if request.auto is not None:
        validation.require_target_count(request.auto.max_targets, deps.settings, "auto", "max_targets")
    model = deps.model_registry.resolve(options_of(job).model)
    track = request.mixture.track
    mixture = job_validation.find_recording(deps, request.mixture.audio_id, "mixture", "audio_id")
    mixture = job_validation.choose_track(mixture, track, "mixture", "track")
    for index, target in enumerate(request.targets):
        require_usable(deps, model, target, index)
    renewed = {
        "mixture": job_validation.recording_record(mixture, track),
        "model": job_validation.model_record(model),
    }
    return _create(deps, options_of(job), request.model_copy(update=renewed), model, mixture)


def _create(
    deps: Dependencies, options: JobOptions, request: SeparationRequest, model: ModelDescription, mixture: Audio
) -> QueuedJob:
    size = SeparationSize(
        mixture.sample_rate,
        mixture.channels,
        job_validation.expected_seconds(mixture.duration),
        len(request.targets) if request.auto is None else request.auto.max_targets,
        request.output,
    )
    size.require_room(deps.settings)
    return SEPARATIONS.create(
        deps,
        options,
        request,
        model,
        [mixture.id, *(audio_id for target in request.targets for audio_id in upload_ids(target))],
        audio_seconds=mixture.duration,
        charged_seconds=size.charged_seconds(deps.settings),
        effort=size.effort(deps.settings),
        targets=[initial_state(target) for target in request.targets],
    )


def find_stem(deps: Dependencies, job: Job, name: str) -> tuple[StemRecord, str]:
    """Return a published stem, by its name in any encoding of accents, and the name of its file.

    Raises `NotFound`, and `StemsExpired` after the stems' retention time.
    """
    wanted = unicodedata.normalize("NFC", name)
    stems = _stems_of(job)
    for index, stem in enumerate(stems):
        if stem.name == wanted:
            require_unexpired(deps, job, "stems")
            return stem, file_names(stems, _source_of(job))[index]
    raise NotFound(f"There is no such stem; there are {', '.join(stem.name for stem in stems)}.")


def stream_archive(deps: Dependencies, job: Job) -> tuple[AsyncIterator[bytes], str]:
    """Return all published stems as the blocks of a zip, and the name of its file.

    Raises `NotFound`, `StemsExpired`, `StoreUnavailable` before the first block.
    """
    stems = _stems_of(job)
    require_unexpired(deps, job, "stems")
    for stem in stems:
        deps.storage.size(stem.key)
    source = _source_of(job)
    name = f"{source_name(source) if source else job.id}.zip"
    return archive.stream(deps.storage, stems, source, job.finished_at or job.created_at), name


def _source_of(job: Job) -> str | None:
    return SeparationRequest.model_validate(job.request).source


def _stems_of(job: Job) -> list[StemRecord]:
    return SeparationResult.model_validate(SEPARATIONS.result_of(job, "stems")).stems
