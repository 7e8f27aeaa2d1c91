"""One saved query: its examples made an embedding."""

from app.records.queries import QueryRequest
from app.records.shared import EmbeddingRecord, pack_vector
from worker.execution import JobExecution, Outcome


def embed(execution: JobExecution) -> Outcome:
    """Decode the examples and hear them. Raises Cancelled; ModelsError and EarmarkError for what is wrong with them;
    StoreUnavailable when the store stays away; OSError where this machine is at fault."""
    request = QueryRequest.model_validate(execution.job.request)
    execution.enter(0.0, "embedding")
    query = execution.embed([example.audio_id for example in request.examples])
    result = EmbeddingRecord(
        vector=pack_vector(query.vector.tolist()),
        model=execution.model,
        coherence=round(query.coherence, 4),
        seconds_used=round(query.seconds_used, 3),
    )
    return Outcome(result, warnings=query.warnings)
