"""The work of a saved query: its examples become one embedding."""

from app.records.queries import QueryRequest
from app.records.shared import EmbeddingRecord, pack_vector
from worker.execution import JobExecution, Outcome


def embed(execution: JobExecution) -> Outcome:
    """Decode the examples and embed them."""
    request = QueryRequest.model_validate(execution.job.request)
    execution.enter(0.0, "embedding")
    query = execution.embed_examples(request.examples)
    result = EmbeddingRecord(
        vector=pack_vector(query.vector.tolist()),
        model=execution.model,
        coherence=round(query.coherence, 4),
        seconds_used=round(query.seconds_used, 3),
    )
    return Outcome(result, warnings=query.warnings)
