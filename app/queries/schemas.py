"""Schemas of saved queries: requests and responses."""

from typing import Annotated, Any

from pydantic import BaseModel, Field, StringConstraints

from app.job_api.schemas import AudioReference, JobAnswer, JobOptions, waiting_for
from app.jobs.lifecycle import Job
from app.keys.signed_urls import Sign
from app.records.queries import QueryRequest, QueryResult

# For people to read; ids identify queries. No control characters.
QueryName = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f-\x9f]{1,100}$")]


class QueryCreate(JobOptions):
    """Examples of one sound, to use in any number of separations."""

    name: QueryName
    examples: Annotated[list[AudioReference], Field(min_length=1)]


class QueryVersions(BaseModel):
    """The models that a saved query can be used with.

    `ready`: those that have embedded it, such as `base@4`; so it is for later versions with the same query encoder.
    `others`: whether any other model embeds it when it is first asked for, from the excerpts that are kept of its
    examples; if not, an earlier release has saved it: save its examples again.
    """

    ready: list[str]
    others: bool


class Excerpts(BaseModel):
    """What is kept of a saved query's examples, until it is deleted."""

    seconds: float
    bytes: int


class QueryAnswer(JobAnswer):
    """A saved query; targets may refer to it once it has succeeded.

    `coherence`, 0 to 1: how well its examples agree; `seconds_used`: of sound, silence left out; `examples`: how many.
    """

    name: str
    examples: int
    coherence: float | None
    seconds_used: float | None
    versions: QueryVersions | None
    excerpts: Excerpts | None

    @classmethod
    def kind_fields(cls, job: Job, url: str, sign: Sign) -> dict[str, Any]:
        request = QueryRequest.model_validate(job.request)
        result = QueryResult.model_validate(job.result) if job.result is not None else None
        return {
            "name": request.name,
            "examples": len(request.examples),
            "coherence": result.coherence if result is not None else None,
            "seconds_used": result.seconds_used if result is not None else None,
            "versions": _versions(result) if result is not None else None,
            "excerpts": _excerpts(result) if result is not None else None,
            "model": result.model if result is not None else waiting_for(job, request.model),
        }


def _versions(result: QueryResult) -> QueryVersions:
    ready = [embedding.model.id for embedding in result.embeddings]
    return QueryVersions(ready=ready, others=bool(result.excerpts))


def _excerpts(result: QueryResult) -> Excerpts | None:
    if not result.excerpts:
        return None
    seconds = sum(excerpt.seconds for excerpt in result.excerpts)
    return Excerpts(seconds=round(seconds, 3), bytes=sum(excerpt.bytes for excerpt in result.excerpts))
