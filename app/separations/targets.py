"""Targets of a separation: from a validated request to what the worker reads in the job's record."""

from typing import NoReturn

from app.dependencies import Dependencies
from app.errors import NotFound, QueryModelMismatch, RequestInvalid
from app.http.problems import field_error
from app.job_api import validation as job_validation
from app.jobs.lifecycle import TargetState
from app.labels.wording import slug
from app.model_registry.registry import ModelDescription
from app.queries import service as queries
from app.records.separations import TargetRecord
from app.records.shared import EmbeddingRecord, embedding_mismatch, pack_vector, unpack_vector
from app.separations import names, validation
from app.separations.schemas import Target


def build_target(
    deps: Dependencies, model: ModelDescription, seconds: float | None, target: Target, index: int
) -> TargetRecord:
    """Return one target's record; `seconds` that the mixture lasts, if that is known for sure.

    Raises `RequestInvalid` and its subclasses, `NotFound`, `QueryNotReady`.
    """
    pointer = ("targets", index)
    record = TargetRecord(name=target.name or "")
    if target.label is not None:
        description = job_validation.find_class(model, target.label, *pointer, "label")
        record.label = description.label
        record.name = target.name or description.slug[:64]
    if target.text is not None:
        record.matched = job_validation.match_text(model, target.text, *pointer, "text")
        record.label = record.matched[0].label
        record.name = target.name or slug(target.text)
    if target.spans is not None:
        record.spans = validation.span_records(target.spans, seconds, deps.settings, *pointer, "spans")
    elif target.examples is not None:
        job_validation.find_examples(deps, target.examples, *pointer, "examples")
        record.examples = job_validation.example_records(target.examples)
    elif target.query_id is not None:
        record.query_id = target.query_id
        record.embedding = queries.find_embedding(deps, target.query_id, model, *pointer, "query_id")
        record.name = target.name or _name_of_query(deps, target.query_id, *pointer)
    elif target.embedding is not None:
        record.embedding = _embedding_record(model, target.embedding, target.model, *pointer)
    _add_negative(deps, model, target, record, *pointer)
    return record


def require_usable(deps: Dependencies, model: ModelDescription, record: TargetRecord, index: int) -> None:
    """Require that a model can separate a target that was built for it, or for another version of it.

    Raises `QueryModelMismatch` and `LabelUnknown`.
    """
    pointer = ("targets", index)
    if record.embedding is not None and not model.understands(made_by := record.embedding.model.id):
        if record.query_id is None:
            _refuse_model(model, made_by, *pointer, "embedding")
        try:
            queries.find_embedding(deps, record.query_id, model, *pointer, "query_id")
        except NotFound as error:
            detail = f"The saved query is deleted; its embedding belongs to the model {made_by}, not to {model.id}."
            raise QueryModelMismatch(detail, [field_error(detail, *pointer, "query_id")]) from error
    for matched in record.matched:
        job_validation.find_class(model, matched.label, *pointer, "text")
    if record.label is not None:
        job_validation.find_class(model, record.label, *pointer, "label")
    if record.not_label is not None:
        job_validation.find_class(model, record.not_label, *pointer, "not_label")


def upload_ids(record: TargetRecord) -> list[str]:
    """Return the uploads that the worker needs for a target."""
    return [example.audio_id for example in (*record.examples, *record.not_examples)]


def initial_state(record: TargetRecord) -> TargetState:
    """Return a target's state in a new job."""
    return TargetState(name=record.name, label=None if record.matched else record.label, matched=record.matched)


def _name_of_query(deps: Dependencies, query_id: str, *pointer: str | int) -> str:
    """Return the name of a saved query, for its target. Raises `RequestInvalid` if a stem cannot have it."""
    try:
        return names.normalize(queries.find_name(deps, query_id))
    except ValueError as error:
        detail = f"Give the target a name, since that of the saved query does not fit. {error}."
        raise RequestInvalid(detail, [field_error(detail, *pointer, "name")]) from error


def _add_negative(
    deps: Dependencies, model: ModelDescription, target: Target, record: TargetRecord, *pointer: str | int
) -> None:
    if target.not_examples is not None:
        job_validation.find_examples(deps, target.not_examples, *pointer, "not_examples")
        record.not_examples = job_validation.example_records(target.not_examples)
    if target.not_label is not None:
        record.not_label = job_validation.find_class(model, target.not_label, *pointer, "not_label").label
        if record.not_label == record.label:
            detail = "The label and not_label of a target must differ."
            raise RequestInvalid(detail, [field_error(detail, *pointer, "not_label")])


def _embedding_record(
    model: ModelDescription, vector: list[float], made_by: str | None, *pointer: str | int
) -> EmbeddingRecord:
    record = job_validation.model_record(model)
    if made_by != record.name and not model.understands(made_by):
        _refuse_model(model, made_by, *pointer, "model")
    if len(vector) != model.embedding_size:
        detail = f"An embedding of {record.id} has {model.embedding_size} numbers; this one has {len(vector)}."
        raise RequestInvalid(detail, [field_error(detail, *pointer, "embedding")])
    packed = pack_vector(vector)
    if not any(unpack_vector(packed)):
        detail = "An embedding must not be all zeros."
        raise RequestInvalid(detail, [field_error(detail, *pointer, "embedding")])
    return EmbeddingRecord(vector=packed, model=record)


def _refuse_model(model: ModelDescription, made_by: str | None, *pointer: str | int) -> NoReturn:
    detail = embedding_mismatch(made_by, model.id)
    raise QueryModelMismatch(detail, [field_error(detail, *pointer)])
