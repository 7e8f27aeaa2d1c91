"""Bodies of separations: JSON, or a form with `mixture`, `query` (files), `span`, `label` and `text` (all repeatable),
`not_label` (of all targets), `track` (of the mixture), and `options` (JSON)."""

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
    not_label = text_field("not_label", _TEXT_BYTES)
    track = text_field("track", _NUMBER_BYTES)
    options = json_field("options", Options, settings.body_bytes)
    await read_form(request, settings, mixture, queries, spans, labels, texts, not_label, track, options)
    asked: list[dict[str, Any]] = []
    if queries.values:
        asked.append({"name": TARGET, "examples": [{"audio_id": query.id} for query in queries.values]})
    if spans.values:
        asked.append({"name": SPAN, "spans": spans.values})
    asked += [{"label": label} for label in labels.values] + [{"text": text} for text in texts.values]
    unlike = {} if not_label.value is None else {"not_label": not_label.value}
    targets = [validate(Target, each | unlike) for each in asked]
    number = int(track.value) if track.value and track.value.isdecimal() else track.value
    recording = validate(AudioReference, {"audio_id": mixture.values[0].id, "track": number})
    return _separation(recording, targets, not_label.value, options.value or Options())


async def _read_span(part: Part) -> SpanSent:
    start, _, end = (await part.text(_SPAN_BYTES)).partition("-")
    try:
        return SpanSent(start=float(start), end=float(end))
    except ValueError:
        detail = "A span is START-END in seconds, such as 3.2-5.0, and ends after it starts."
        raise RequestInvalid(detail, [field_error(detail, "span")]) from None


def _separation(
    mixture: AudioReference, targets: list[Target], not_label: str | None, options: Options
) -> SeparationCreate:
    if not targets and options.auto is None:
        detail = "The form has no target: send query files, spans, labels or texts, or options with auto."
        raise RequestInvalid(detail, [field_error(detail, "query")])
    if options.auto is not None and (targets or not_label is not None):
        detail = "Not with query, span, label, text or not_label."
        raise RequestInvalid("Give either targets or auto, not both.", [field_error(detail, "options", "auto")])
    fields = {field: getattr(options, field) for field in Options.model_fields}
    return SeparationCreate(mixture=mixture, targets=targets or None, **fields)
