"""Targets as they were asked for, checked and made what the worker is told."""

from app.dependencies import Dependencies
from app.errors import QueryModelMismatch, RequestInvalid
from app.http.problems import field_error
from app.job_api import validation
from app.model_registry import ModelDescription
from app.queries import service as queries
from app.records.audio import Audio
from app.records.separations import TargetRecord
from app.records.shared import EmbeddingRecord, pack_vector, unpack_vector
from app.separations import validation as own
from app.separations.schemas import Target


def build_target(deps: Dependencies, model: ModelDescription, mixture: Audio, sent: Target, index: int) -> TargetRecord:
    """One target's record. Raises `RequestInvalid` and its kin, `NotFound`, `QueryNotReady`."""
    place = ("targets", index)
    record = TargetRecord(name=sent.name or "")
    if sent.label is not None:
        known = validation.find_class(model, sent.label, *place, "label")
        record.label = known.label
        record.name = sent.name or known.slug[:64]
    elif sent.spans is not None:
        record.spans = own.spans(sent.spans, mixture, deps.settings, *place, "spans")
    elif sent.examples is not None:
        record.examples = validation.example_records(validation.find_examples(deps, sent.examples, *place, "examples"))
    elif sent.query_id is not None:
        record.embedding = queries.find_embedding(deps, sent.query_id, model, *place, "query_id")
    elif sent.embedding is not None:
        record.embedding = _embedding(model, sent.embedding, sent.model, *place)
    _negative(deps, model, sent, record, *place)
    return record


def upload_ids(record: TargetRecord) -> list[str]:
    """The uploads that the worker needs for a target."""
    return [example.audio_id for example in (*record.examples, *record.not_examples)]


def _negative(
    deps: Dependencies, model: ModelDescription, sent: Target, record: TargetRecord, *pointer: str | int
) -> None:
    if sent.not_examples is not None:
        found = validation.find_examples(deps, sent.not_examples, *pointer, "not_examples")
        record.not_examples = validation.example_records(found)
    if sent.not_label is not None:
        record.not_label = validation.find_class(model, sent.not_label, *pointer, "not_label").label
        if record.not_label == record.label:
            detail = "A target cannot be what it is not."
            raise RequestInvalid(detail, [field_error(detail, *pointer, "not_label")])


def _embedding(
    model: ModelDescription, vector: list[float], made_by: str | None, *pointer: str | int
) -> EmbeddingRecord:
    record = validation.model_record(model)
    if made_by not in (record.name, record.id):
        detail = f"The embedding is the model {made_by}'s; this separation is done by {record.id}."
        raise QueryModelMismatch(detail, [field_error(detail, *pointer, "model")])
    if len(vector) != model.embedding_size:
        detail = f"An embedding of {record.id} has {model.embedding_size} numbers; this one has {len(vector)}."
        raise RequestInvalid(detail, [field_error(detail, *pointer, "embedding")])
    kept = pack_vector(vector)
    if not any(unpack_vector(kept)):
        detail = "An embedding of zeros asks for nothing."
        raise RequestInvalid(detail, [field_error(detail, *pointer, "embedding")])
    return EmbeddingRecord(vector=kept, model=record)
