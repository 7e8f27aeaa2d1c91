"""Saved queries: a request checked and made a job; an embedding found for who asks with it."""

from app.dependencies import Dependencies
from app.errors import NotFound, QueryModelMismatch, QueryNotReady
from app.http.problems import field_error
from app.job_api import validation
from app.job_api.resource import JobResource
from app.jobs.kinds import QUERY
from app.jobs.lifecycle import Job
from app.model_registry import ModelDescription
from app.queries.schemas import QueryAnswer, QueryCreate
from app.records.queries import QueryRequest
from app.records.shared import EmbeddingRecord

QUERIES = JobResource(QUERY, QueryAnswer)


def create(deps: Dependencies, sent: QueryCreate) -> Job:
    """Check a request and put it on the queue.

    Raises `ModelUnavailable`, `NotFound` (an upload), `RequestInvalid` and its kin, and what `accept` does.
    """
    model = validation.model(deps, sent.model)
    examples = validation.find_examples(deps, sent.examples, "examples")
    request = QueryRequest(
        name=sent.name, examples=validation.example_records(examples), model=validation.model_record(model)
    )
    known = [example.duration for example in examples if example.duration is not None]
    seconds = sum(known) if len(known) == len(examples) else None
    return QUERIES.make(deps, request, sent, model, [example.id for example in examples], audio_seconds=seconds)


def find_embedding(deps: Dependencies, query_id: str, model: ModelDescription, *pointer: str | int) -> EmbeddingRecord:
    """The embedding of the caller's saved query, to be copied: whoever asks with it needs the query no more.

    Raises `NotFound`, `QueryNotReady`, and `QueryModelMismatch` where `model` did not make it.
    """
    try:
        job = QUERIES.get(deps, query_id)
    except NotFound as error:
        raise NotFound("There is no such query.", [field_error("There is no such query.", *pointer)]) from error
    if job.status != "succeeded" or job.result is None:
        detail = f"The saved query is {job.status}; it can be used once it has succeeded."
        raise QueryNotReady(detail, [field_error(detail, *pointer)])
    found = EmbeddingRecord.model_validate(job.result)
    wanted = validation.model_record(model)
    if found.model != wanted:
        detail = f"The saved query is the model {found.model.id}'s; this separation is done by {wanted.id}."
        raise QueryModelMismatch(detail, [field_error(detail, *pointer)])
    return found
