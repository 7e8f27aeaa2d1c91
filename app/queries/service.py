"""Saved queries: validation of a request, creation of its job, lookup of its embedding."""

from app.dependencies import Dependencies
from app.errors import NotFound, QueryModelMismatch, QueryNotReady
from app.http.problems import field_error
from app.job_api import validation
from app.job_api.resource import JobResource, options_of, request_of
from app.job_api.schemas import AudioReference
from app.jobs.kinds import QUERY
from app.jobs.lifecycle import Job
from app.jobs.repository import QueuedJob
from app.model_registry.registry import ModelDescription
from app.queries.schemas import QueryAnswer, QueryCreate
from app.records.queries import QueryRequest
from app.records.shared import EmbeddingRecord

QUERIES = JobResource(
    QUERY, QueryAnswer, QueryCreate, {"name": "mine", "examples": [{"audio_id": "$response.body#/id"}]}
)


def create(deps: Dependencies, body: QueryCreate) -> QueuedJob:
    """Validate a request and create its job.

    Raises `ModelUnavailable`, `NotFound` (an upload), `RequestInvalid` and its subclasses, and what
    `JobResource.create` raises.
    """
    model = deps.model_registry.resolve(body.model)
    examples = validation.find_examples(deps, body.examples, "examples")
    request = QueryRequest(
        name=body.name, examples=validation.example_records(body.examples), model=validation.model_record(model)
    )
    durations = [example.duration for example in examples if example.duration is not None]
    seconds = sum(durations) if len(durations) == len(examples) else None
    return QUERIES.create(
        deps,
        body,
        request,
        model,
        [example.id for example in examples],
        audio_seconds=seconds,
        charged_seconds=validation.expected_seconds(seconds),
    )


def create_again(deps: Dependencies, job: Job) -> QueuedJob:
    """Create a job with the request of another one, which is complete. Raises `RecordUnreadable`, and as `create`."""
    request = request_of(job, QueryRequest)
    examples = [AudioReference(audio_id=example.audio_id, track=example.track) for example in request.examples]
    return create(deps, QueryCreate(name=request.name, examples=examples, **dict(options_of(job))))


def find_embedding(deps: Dependencies, query_id: str, model: ModelDescription, *pointer: str | int) -> EmbeddingRecord:
    """Return the embedding of the caller's saved query, to be copied into the job that uses it.

    Raises `NotFound`, `QueryNotReady`, `QueryModelMismatch` if another model than `model` made it, and
    `StoreUnavailable` if it is large.
    """
    try:
        job = deps.large_fields.load(QUERIES.get(deps, query_id))
    except NotFound as error:
        raise NotFound("There is no such query.", [field_error("There is no such query.", *pointer)]) from error
    if job.status != "succeeded" or job.result is None:
        detail = f"The saved query is {job.status}; it can be used once it has succeeded."
        raise QueryNotReady(detail, [field_error(detail, *pointer)])
    embedding = EmbeddingRecord.model_validate(job.result)
    if not model.understands(embedding.model.id):
        used = validation.model_record(model).id
        detail = f"The saved query belongs to the model {embedding.model.id}, not to {used}: save its examples again."
        raise QueryModelMismatch(detail, [field_error(detail, *pointer)])
    return embedding
