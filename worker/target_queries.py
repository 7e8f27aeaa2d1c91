"""Queries of a separation's targets: from the request, or from what the detector finds in the mixture."""

from collections.abc import Sequence

import torch

from app.errors import AudioTooLong, QueryModelMismatch, SpanOutside
from app.jobs.lifecycle import TargetState
from app.records.separations import AutoRecord, Span, TargetRecord
from app.records.shared import EmbeddingRecord, MatchedClass, embedding_mismatch, unpack_vector
from models.detected_targets import detect_targets
from models.options import Auto
from models.queries.query import Query, surroundings
from worker.execution import JobExecution, Recording, read_mono
from worker.saved_queries import find_embedding


def target_query(execution: JobExecution, mixture: Recording, target: TargetRecord) -> Query:
    """Return the query of one target. Raises the EarmarkError or ModelsError that the target fails with."""
    query = _positive_query(execution, mixture, target)
    negative = _negative_query(execution, target)
    return query if negative is None else query.without(negative)


def auto_targets(
    execution: JobExecution, mixture: Recording, auto: AutoRecord
) -> tuple[list[tuple[TargetState, Query]], list[str]]:
    """Return a target and its query for each sound that the detector finds, the most probable first, and warnings."""
    found = detect_targets(
        execution.context.engine,
        mixture.path,
        Auto(auto.max_targets, auto.threshold),
        cancelled=execution.control.is_cancelled,
        limits=execution.recording_limits,
    )
    targets = [(TargetState(name=name, label=found.labels[name].name), query) for name, query in found.queries.items()]
    return targets, found.warnings


def _positive_query(execution: JobExecution, mixture: Recording, target: TargetRecord) -> Query:
    if target.label is not None:
        named = _named_query(execution, target.label, target.matched)
        return execution.embed_examples(target.examples).with_label(named) if target.examples else named
    if target.spans:
        return _span_query(execution, mixture, target.spans)
    if target.embedding is not None:
        return _embedding_query(execution, target.embedding, target.query_id)
    return execution.embed_examples(target.examples)


def _named_query(execution: JobExecution, label: str, matched: Sequence[MatchedClass]) -> Query:
    """Return the query of a class, or of those that a text means. Raises LabelUnknown."""
    classes = matched or [MatchedClass(label=label, weight=1.0)]
    return execution.context.engine.label_mean({match.label: match.weight for match in classes})


def _span_query(execution: JobExecution, mixture: Recording, spans: list[Span]) -> Query:
    """Return a query from spans of the mixture. Raises SpanOutside, AudioTooLong, SilentQuery, ExampleTooShort."""
    rate, duration, longest = mixture.info.rate, mixture.duration, execution.context.settings.example_seconds
    parts = []
    for span in spans:
        if not 0 <= span.start < span.end <= duration + 0.01:
            raise SpanOutside(f"{span.start:g} to {span.end:g} s lies outside the mixture of {duration:g} s.")
        if span.end - span.start > longest:
            raise AudioTooLong(f"A span may last {longest:g} s.")
        parts.append(read_mono(mixture.path, round(span.start * rate), round(span.end * rate)))
    around = surroundings([(span.start, span.end) for span in spans], duration)
    rest = [read_mono(mixture.path, round(start * rate), round(end * rate)) for start, end in around]
    return execution.context.engine.embed(parts, from_mixture=True, surroundings=rest)


def _negative_query(execution: JobExecution, target: TargetRecord) -> Query | None:
    if target.not_label is not None:
        return execution.context.engine.label(target.not_label)
    if target.not_examples:
        return execution.embed_examples(target.not_examples, "Negative example")
    return None


def _embedding_query(execution: JobExecution, embedding: EmbeddingRecord, query_id: str | None) -> Query:
    """Return the query of an embedding, or of the saved query that it is a copy of, for this worker's model.

    Raises QueryModelMismatch where there is none, and as `saved_queries.find_embedding` does.
    """
    engine = execution.context.engine
    if not engine.understands(embedding.model.id):
        if query_id is None:
            raise QueryModelMismatch(embedding_mismatch(embedding.model.id, engine.model_id))
        embedding = find_embedding(execution, query_id)
    return engine.accept(
        Query(
            torch.tensor(unpack_vector(embedding.vector)),
            embedding.model.id,
            coherence=1.0 if embedding.coherence is None else embedding.coherence,
            seconds_used=embedding.seconds_used or 0.0,
        )
    )
