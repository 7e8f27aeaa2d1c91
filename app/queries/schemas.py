"""Schemas of saved queries: requests and responses."""

from typing import Annotated, Any

from pydantic import Field, StringConstraints

from app.job_api.schemas import AudioReference, JobAnswer, JobOptions, waiting_for
from app.jobs.lifecycle import Job
from app.keys.signed_urls import Sign
from app.records.queries import QueryRequest
from app.records.shared import EmbeddingRecord

# For people to read; ids identify queries. No control characters.
QueryName = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f-\x9f]{1,100}$")]


class QueryCreate(JobOptions):
    """Examples of one sound, to use in any number of separations."""

    name: QueryName
    examples: Annotated[list[AudioReference], Field(min_length=1)]


class QueryAnswer(JobAnswer):
    """A saved query; targets may refer to it once it has succeeded.

    `coherence`, 0 to 1: how well its examples agree; `seconds_used`: of sound, silence left out; `examples`: how many.
    """

    name: str
    examples: int
    coherence: float | None
    seconds_used: float | None

    @classmethod
    def kind_fields(cls, job: Job, url: str, sign: Sign) -> dict[str, Any]:
        request = QueryRequest.model_validate(job.request)
        result = EmbeddingRecord.model_validate(job.result) if job.result is not None else None
        return {
            "name": request.name,
            "examples": len(request.examples),
            "coherence": result.coherence if result is not None else None,
            "seconds_used": result.seconds_used if result is not None else None,
            "model": result.model if result is not None else waiting_for(job, request.model),
        }
