"""What a separation's targets are turned into: queries, each from what was given, or from what is heard."""

from collections.abc import Iterator
from pathlib import Path

import torch

from app.errors import AudioTooLong, RequestInvalid, SpanOutside
from app.jobs.lifecycle import TargetState
from app.records.separations import AutoRecord, Span, TargetRecord
from app.records.shared import EmbeddingRecord, unpack_vector
from models import auto_targets as detected
from models import labels
from models.errors import LabelUnknown, SilentQuery
from models.media import MediaInfo
from models.query import Query, require_model
from worker.execution import JobExecution, read_mono

_LEAST_LEFT = 0.05  # of a query's length, once what it is not was taken away; less says nothing


class Mixture:
    """The decoded mixture: a WAV of floats and what the decoder said of it."""

    def __init__(self, path: Path, info: MediaInfo, longest_span: float) -> None:
        self.path = path
        self.info = info
        self._longest_span = longest_span

    def query(self, execution: JobExecution, spans: list[Span]) -> Query:
        """A query from parts of it. Raises SpanOutside, AudioTooLong, SilentQuery."""
        rate, duration = self.info.rate, self.info.duration or 0.0
        parts = []
        for span in spans:
            if not 0 <= span.start < span.end <= duration + 0.01:
                raise SpanOutside(f"{span.start:g} to {span.end:g} s lies outside the mixture of {duration:g} s.")
            if span.end - span.start > self._longest_span:
                raise AudioTooLong(f"A span may last {self._longest_span:g} s.")
            parts.append(read_mono(self.path, round(span.start * rate), round(span.end * rate)))
        return execution.context.engine.embed(parts, from_mixture=True)


def target_query(execution: JobExecution, mixture: Mixture, target: TargetRecord) -> Query:
    """The query of one target. Raises EarmarkError and ModelsError for what is wrong with it."""
    query = _positive(execution, mixture, target)
    other = _negative(execution, target)
    if other is None:
        return query
    rest = query.without(other)
    if rest.vector.norm() < _LEAST_LEFT * query.vector.norm():
        raise RequestInvalid("What the target is not sounds like the target itself: nothing is left to ask for.")
    return rest


def auto_targets(execution: JobExecution, mixture: Mixture, auto: AutoRecord) -> Iterator[tuple[TargetState, Query]]:
    """Everything that the detector hears, the surest first, as a target each.

    A query comes from where its class sounds by itself; else it is the class's own; else, for a class that has none,
    it comes from where it is surest.
    """
    engine = execution.context.engine
    found = engine.detect_file(
        mixture.path,
        labels.CLASSES,
        auto.threshold,
        cancelled=execution.attention.is_cancelled,
        limits=execution.limits(execution.context.settings.recording_seconds),
    )
    for sound in detected.choose_targets(found, auto.max_targets, auto.threshold):
        execution.check()
        query = _query_of(execution, mixture, sound)
        if query is not None:
            state = TargetState(name=sound.label.slug[:64], label=sound.label.name)
            yield state, query


def _query_of(execution: JobExecution, mixture: Mixture, sound: detected.AutoTarget) -> Query | None:
    spans = [Span(start=start, end=end) for start, end in sound.spans]

    def own() -> Query:
        return execution.context.engine.label(sound.label.mid)

    def where_it_sounds() -> Query:
        return mixture.query(execution, spans)

    for way in (where_it_sounds, own) if sound.alone else (own, where_it_sounds):
        try:
            return way()
        except (LabelUnknown, SilentQuery):
            continue
    return None


def _positive(execution: JobExecution, mixture: Mixture, target: TargetRecord) -> Query:
    if target.label is not None:
        return execution.context.engine.label(target.label)
    if target.spans:
        return mixture.query(execution, target.spans)
    if target.embedding is not None:
        return _saved_query(target.embedding, execution.context.engine.model_id)
    return execution.embed([example.audio_id for example in target.examples])


def _negative(execution: JobExecution, target: TargetRecord) -> Query | None:
    if target.not_label is not None:
        return execution.context.engine.label(target.not_label)
    if target.not_examples:
        return execution.embed([example.audio_id for example in target.not_examples])
    return None


def _saved_query(embedding: EmbeddingRecord, model: str) -> Query:
    query = Query(
        torch.tensor(unpack_vector(embedding.vector)),
        embedding.model.id,
        coherence=1.0 if embedding.coherence is None else embedding.coherence,
        seconds_used=embedding.seconds_used or 0.0,
    )
    require_model(query, model)  # here, so that this target fails alone
    return query
