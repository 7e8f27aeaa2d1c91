"""The one-call form: `mixture`, `query` (files, repeatable), `label` (repeatable) and `options` (JSON)."""

from collections.abc import AsyncIterator

from app.audio.service import Uploads
from app.errors import RequestInvalid
from app.http import multipart
from app.http.multipart import Part
from app.http.problems import field_error
from app.http.validation import validate
from app.job_api.schemas import AudioReference
from app.separations.schemas import Options, SeparationCreate, Target
from app.settings import Settings

TARGET = "target"  # what the one target is called that all `query` files are examples of
_TEXT_BYTES = 1024  # of one label


async def read(form: AsyncIterator[Part], uploads: Uploads, settings: Settings) -> SeparationCreate:
    """Receive a form's files and make of its fields the request that JSON would have been.

    Raises `RequestInvalid`, `RequestValidationError`, and what receiving raises.
    """
    mixture: str | None = None
    queries: list[str] = []
    labels: list[str] = []
    options: Options | None = None
    async for part in form:
        if part.name in ("mixture", "query") and part.filename is None:
            raise RequestInvalid(f"The field {part.name} is a file.", [field_error("Send a file.", part.name)])
        if part.name == "mixture" and mixture is None:
            mixture = (await uploads.receive(part)).id
        elif part.name == "query" and len(queries) < settings.examples:
            queries.append((await uploads.receive(part)).id)
        elif part.name == "label" and len(labels) < settings.targets:
            labels.append(await part.text(_TEXT_BYTES))
        elif part.name == "options" and options is None:
            options = validate(Options, await part.json(settings.body_bytes), "options")
        else:
            raise multipart.unexpected_part(part)
    if mixture is None:
        raise RequestInvalid("The form has no mixture.", [field_error("Field required.", "mixture")])
    targets: list[Target] = []
    if queries:
        targets.append(Target(name=TARGET, examples=[AudioReference(audio_id=audio_id) for audio_id in queries]))
    targets += [validate(Target, {"label": label}) for label in labels]
    options = options or Options()
    if not targets and options.auto is None:
        raise RequestInvalid("Nothing is asked for.", [field_error("Send query files, or labels.", "query")])
    if targets and options.auto is not None:
        raise RequestInvalid(
            "Either targets are named, or they are found.", [field_error("Not with query or label.", "options", "auto")]
        )
    fields = {field: getattr(options, field) for field in Options.model_fields}
    return SeparationCreate(mixture=AudioReference(audio_id=mixture), targets=targets or None, **fields)
