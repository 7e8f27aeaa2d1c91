"""Separations: a request checked and made a job; a job told; a stem found."""

import hashlib
import time
from collections.abc import AsyncIterator

from app.acceptance import accept
from app.audio import service as audio
from app.audio.records import Audio
from app.errors import NotFound, RequestInvalid, StemsExpired
from app.ids import SEPARATION, is_id, new_id
from app.lifecycle import Job, Status, TargetState
from app.problems import fault
from app.registry import ModelDescription
from app.separations import archive, checks
from app.separations.records import (
    KIND,
    ExampleRecord,
    MixtureRecord,
    ModelRecord,
    SeparationRequest,
    SeparationResult,
    StemRecord,
    TargetRecord,
)
from app.separations.schemas import SeparationAnswer, SeparationCreate, Target
from app.wiring import Parts


def create(parts: Parts, sent: SeparationCreate) -> Job:
    """Check a request and put it on the queue.

    Raises `ModelUnavailable`, `NotFound` (an upload), `RequestInvalid` and its kin, and what `accept` does.
    """
    checks.count(len(sent.targets), parts.settings)
    name, _, version = (sent.model or parts.settings.model).partition("@")
    model = parts.registry.model(name)
    checks.version(model, version or None)
    mixture = _find(parts, sent.mixture.audio_id, "mixture", "audio_id")
    output = checks.output(sent.output, mixture)
    targets = [_target(parts, model, mixture, target, index) for index, target in enumerate(sent.targets)]
    checks.names([target.name for target in targets])
    request = SeparationRequest(
        mixture=_mixture(mixture),
        model=ModelRecord(name=model.name, version=model.version),
        targets=targets,
        output=output,
    )
    now = time.time()
    used = [mixture.id, *(example.audio_id for target in targets for example in target.examples)]
    job = Job(
        id=new_id(SEPARATION),
        kind=KIND,
        model=model.name,
        request=request.model_dump(),
        audio_ids=list(dict.fromkeys(used)),
        audio_seconds=mixture.duration,
        targets=[TargetState(name=target.name, label=target.label) for target in targets],
        metadata=sent.metadata,
        created_at=now,
        changed_at=now,
        expires_at=now + parts.settings.stem_retention,
    )
    return accept(parts, job)


def find(parts: Parts, job_id: str) -> Job:
    """The record of the caller's separation; raises `NotFound` for what is no id and what is another's, too."""
    if not is_id(job_id, SEPARATION):
        raise NotFound("There is no such separation.")
    return parts.caller.own(parts.jobs.get(job_id), "job")


def tell(parts: Parts, job: Job) -> SeparationAnswer:
    """The job as clients see it."""
    return SeparationAnswer.of(job, parts.jobs.position(job), parts.signatures.signing(job.owner))


def etag(answer: SeparationAnswer) -> str:
    """Changes with everything but `progress` and `queue`, which change by themselves all the time."""
    told = answer.model_dump_json(exclude={"progress", "queue"})
    return f'"{hashlib.sha256(told.encode()).hexdigest()[:32]}"'


def newest(
    parts: Parts, status: Status | None, limit: int, cursor: str | None
) -> tuple[list[SeparationAnswer], str | None]:
    """The caller's separations, the newest first, and the cursor of the next page.

    Raises `RequestInvalid` for what is no cursor.
    """
    if cursor is not None and not is_id(cursor, SEPARATION):
        raise RequestInvalid("The cursor is none that a page gave.")
    jobs, following = parts.jobs.newest(parts.caller.key_id, KIND, limit, cursor, status)
    return [tell(parts, job) for job in jobs], following


def delete(parts: Parts, job_id: str) -> None:
    """Delete a job, whatever its state, and what it stored."""
    job = parts.jobs.delete(find(parts, job_id).id)
    parts.storage.delete_prefix(f"separations/{job.id}")


def stem(parts: Parts, job_id: str, name: str) -> StemRecord:
    """A published stem; raises `NotFound`, and `StemsExpired` once they were swept."""
    job = find(parts, job_id)
    for found in _published(job):
        if found.name == name:
            _kept(job)
            return found
    raise NotFound("There is no such stem.")


def archived(parts: Parts, job_id: str) -> AsyncIterator[bytes]:
    """All published stems as a zip. Raises `NotFound`, `StemsExpired`, `StoreUnavailable` before its first byte."""
    job = find(parts, job_id)
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
    if job.expired or job.expires_at <= time.time():
        raise StemsExpired("The stems were kept as long as promised.")


def _target(parts: Parts, model: ModelDescription, mixture: Audio, sent: Target, index: int) -> TargetRecord:
    checks.examples(sent, index, parts.settings)
    if sent.label is not None:
        known = checks.label(model, sent.label, "targets", index, "label")
        return TargetRecord(name=sent.name or known.slug[:64], label=known.label)
    assert sent.name is not None  # noqa: S101 (the schema saw to it)
    if sent.spans is not None:
        return TargetRecord(name=sent.name, spans=checks.spans(sent.spans, mixture, index))
    examples = []
    for number, example in enumerate(sent.examples or []):
        place = ("targets", index, "examples", number, "audio_id")
        checks.example_length(_find(parts, example.audio_id, *place), parts.settings, *place)
        examples.append(ExampleRecord(audio_id=example.audio_id))
    if len({example.audio_id for example in examples}) != len(examples):
        raise RequestInvalid("An example is named twice.", [fault("Named twice.", "targets", index, "examples")])
    return TargetRecord(name=sent.name, examples=examples)


def _find(parts: Parts, audio_id: str, *pointer: str | int) -> Audio:
    try:
        return audio.find(parts, audio_id)
    except NotFound as error:
        raise NotFound("There is no such audio.", [fault("There is no such audio.", *pointer)]) from error


def _mixture(found: Audio) -> MixtureRecord:
    return MixtureRecord(
        audio_id=found.id, duration=found.duration, sample_rate=found.sample_rate, channels=found.channels
    )
