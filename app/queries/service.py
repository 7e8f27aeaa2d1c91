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
from app.records.queries import QueryRequest, QueryResult
from app.records.shared import EmbeddingRecord

QUERIES = JobResource(
    QUERY, QueryAnswer, QueryCreate, {"name": "mine", "examples": [{"audio_id": "$response.body#/id"}]}
)


def create(deps: Dependencies, body: QueryCreate) -> QueuedJob:
    """Validate a request and create its job.

    Raises `ModelUnavailable`, `NotFound` (an upload), `RequestInvalid` and its subclasses, `QuotaExceeded` where the
    caller's saved queries keep as many bytes as they may, and what `JobResource.create` raises.
    """
    with deps.budgets.count_refusal("excerpt_bytes"):
        deps.jobs.excerpt_bytes.require_room(deps.caller.key_id)
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
    """Return an embedding of the caller's saved query, to be copied into the job that uses it: one that `model`
    understands, or else another one, in place of which the worker has to make its own.

    Raises `NotFound`, `QueryNotReady`, `QueryModelMismatch` if the worker cannot, and `StoreUnavailable` if the record
    is large.
    """
    try:
        job = deps.large_fields.load(QUERIES.get(deps, query_id))
    except NotFound as error:
        raise NotFound("There is no such query.", [field_error("There is no such query.", *pointer)]) from error
    if job.status != "succeeded" or job.result is None:
        detail = f"The saved query is {job.status}; it can be used once it has succeeded."
        raise QueryNotReady(detail, [field_error(detail, *pointer)])
    result = QueryResult.model_validate(job.result)
    found = result.find(model.understands)
    if found is None and not result.excerpts:
        detail = result.mismatch(model.id)
        raise QueryModelMismatch(detail, [field_error(detail, *pointer)])
    return found or result.embeddings[0]


def find_name(deps: Dependencies, query_id: str) -> str:
    """Return the name of the caller's saved query. Raises `NotFound`, and `RecordUnreadable`."""
    return request_of(QUERIES.get(deps, query_id), QueryRequest).name
