"""The work of a saved query: its examples become one embedding, and excerpts from which other models make theirs."""

from app.records.queries import QueryRequest, QueryResult
from worker.execution import JobExecution, Outcome
from worker.saved_queries import embedding_record, store_excerpts

STORING = 0.9  # the job's progress, 0 to 1


def embed(execution: JobExecution) -> Outcome:
    """Decode the examples, embed them and store their excerpts."""
    request = QueryRequest.model_validate(execution.job.request)
    execution.enter(0.0, "embedding")
    examples = execution.read_examples(request.examples)
    query = execution.embed(examples)
    execution.enter(STORING, "storing")
    excerpts = store_excerpts(execution, examples.waveforms)
    embedding = embedding_record(query, execution.model)
    return Outcome(
        QueryResult(**embedding.model_dump(), excerpts=excerpts),
        warnings=query.warnings,
        excerpt_bytes=sum(excerpt.bytes for excerpt in excerpts),
    )
