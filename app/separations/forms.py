"""Bodies of separations: JSON, or a form with `mixture`, `query` (files), `label` and `text` (both repeatable), `track`
(of the mixture), and `options` (JSON)."""

from fastapi import Request

from app.audio.service import Uploads
from app.errors import RequestInvalid
from app.http import bodies
from app.http.forms import file_field, json_field, read_form, text_field
from app.http.problems import field_error
from app.http.validation import validate
from app.job_api.schemas import AudioReference
from app.separations.schemas import Options, SeparationCreate, Target
from app.settings import Settings

TARGET = "target"  # the name of the target that the `query` files of a form are examples of
_TEXT_BYTES = 1024  # of one label or text
_NUMBER_BYTES = 8  # of a track


async def read(request: Request, settings: Settings, uploads: Uploads) -> SeparationCreate:
    """Read a JSON body, or receive a form's files and make the same of its fields.

    Raises `RequestInvalid`, `RequestValidationError`, and what reading a body and receiving a file raise.
    """
    if not bodies.is_form(request):
        return validate(SeparationCreate, await bodies.read_json(request, settings))
    mixture = file_field("mixture", uploads.receive, is_required=True)
    queries = file_field("query", uploads.receive, limit=settings.examples)
    labels = text_field("label", _TEXT_BYTES, limit=settings.targets)
    texts = text_field("text", _TEXT_BYTES, limit=settings.targets)
    track = text_field("track", _NUMBER_BYTES)
    options = json_field("options", Options, settings.body_bytes)
    await read_form(request, settings, mixture, queries, labels, texts, track, options)
    query_ids = [query.id for query in queries.values]
    names = [{"label": label} for label in labels.values] + [{"text": text} for text in texts.values]
    number = int(track.value) if track.value and track.value.isdecimal() else track.value
    recording = validate(AudioReference, {"audio_id": mixture.values[0].id, "track": number})
    return _separation(recording, query_ids, names, options.value or Options())


def _separation(
    mixture: AudioReference, queries: list[str], names: list[dict[str, str]], options: Options
) -> SeparationCreate:
    targets: list[Target] = []
    if queries:
        targets.append(Target(name=TARGET, examples=[AudioReference(audio_id=audio_id) for audio_id in queries]))
    targets += [validate(Target, name) for name in names]
    if not targets and options.auto is None:
        detail = "The form has no target: send query files, labels or texts, or options with auto."
        raise RequestInvalid(detail, [field_error(detail, "query")])
    if targets and options.auto is not None:
        raise RequestInvalid(
            "Give either targets or auto, not both.", [field_error("Not with query, label or text.", "options", "auto")]
        )
    fields = {field: getattr(options, field) for field in Options.model_fields}
    return SeparationCreate(mixture=mixture, targets=targets or None, **fields)
