"""Bodies of separations: JSON, or a form with `mixture`, `query` (files), `span`, `label` and `text` (all repeatable),
`not_query` (files, repeatable) or `not_label` (of all targets), `track` (of the mixture), and `options` (JSON)."""

from typing import Any

from fastapi import Request

from app.audio.service import Uploads
from app.errors import RequestInvalid
from app.http import bodies
from app.http.forms import FormField, file_field, json_field, read_form, text_field
from app.http.multipart import Part
from app.http.problems import field_error
from app.http.validation import validate
from app.job_api.schemas import AudioReference
from app.records.audio import Audio
from app.separations.schemas import Options, SeparationCreate, SpanSent, Target
from app.settings import Settings

TARGET = "target"  # the name of the target that the `query` files of a form are examples of
SPAN = "span"  # the name of the target that is heard in the `span` fields of a form
_TEXT_BYTES = 1024  # of one label or text
_SPAN_BYTES = 64
_NUMBER_BYTES = 8  # of a track


async def read(request: Request, settings: Settings, uploads: Uploads) -> SeparationCreate:
    """Read a JSON body, or receive a form's files and make the same of its fields.

    Raises `RequestInvalid`, `RequestValidationError`, and what reading a body and receiving a file raise.
    """
    if not bodies.is_form(request):
        return validate(SeparationCreate, await bodies.read_json(request, settings))
    mixture = file_field("mixture", uploads.receive, is_required=True)
    queries = file_field("query", uploads.receive, limit=settings.examples)
    spans = FormField("span", _read_span, settings.examples)
    labels = text_field("label", _TEXT_BYTES, limit=settings.targets)
    texts = text_field("text", _TEXT_BYTES, limit=settings.targets)
    not_queries = file_field("not_query", uploads.receive, limit=settings.examples)
    not_label = text_field("not_label", _TEXT_BYTES)
    track = text_field("track", _NUMBER_BYTES)
    options = json_field("options", Options, settings.body_bytes)
    wanted, unwanted = (queries, spans, labels, texts), (not_queries, not_label)
    await read_form(request, settings, mixture, *wanted, *unwanted, track, options)
    asked: list[dict[str, Any]] = []
    if queries.values:
        asked.append({"name": TARGET, "examples": _references(queries)})
    if spans.values:
        asked.append({"name": SPAN, "spans": spans.values})
    asked += [{"label": label} for label in labels.values] + [{"text": text} for text in texts.values]
    unlike = _negative(not_queries, not_label)
    targets = [validate(Target, each | unlike) for each in asked]
    number = int(track.value) if track.value and track.value.isdecimal() else track.value
    recording = validate(AudioReference, {"audio_id": mixture.values[0].id, "track": number})
    return _separation(recording, targets, bool(unlike), options.value or Options())


def _references(files: FormField[Audio]) -> list[dict[str, Any]]:
    return [{"audio_id": file.id} for file in files.values]


def _negative(files: FormField[Audio], label: FormField[str]) -> dict[str, Any]:
    """Return the fields of a target that say what it is not. Raises `RequestInvalid`."""
    if files.values and label.value is not None:
        detail = "Give at most one of not_query and not_label."
        raise RequestInvalid(detail, [field_error(detail, "not_label")])
    if files.values:
        return {"not_examples": _references(files)}
    return {} if label.value is None else {"not_label": label.value}


async def _read_span(part: Part) -> SpanSent:
    start, _, end = (await part.text(_SPAN_BYTES)).partition("-")
    try:
        return SpanSent(start=float(start), end=float(end))
    except ValueError:
        detail = "A span is START-END in seconds, such as 3.2-5.0, and ends after it starts."
        raise RequestInvalid(detail, [field_error(detail, "span")]) from None


def _separation(
    mixture: AudioReference, targets: list[Target], has_negative: bool, options: Options
) -> SeparationCreate:
    if not targets and options.auto is None:
        detail = "The form has no target: send query files, spans, labels or texts, or options with auto."
        raise RequestInvalid(detail, [field_error(detail, "query")])
    if options.auto is not None and (targets or has_negative):
        detail = "Not with query, span, label, text, not_query or not_label."
        raise RequestInvalid("Give either targets or auto, not both.", [field_error(detail, "options", "auto")])
    fields = {field: getattr(options, field) for field in Options.model_fields}
    return SeparationCreate(mixture=mixture, targets=targets or None, **fields)
