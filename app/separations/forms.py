"""Bodies of separations: JSON, or a form with `mixture`, `query` (files), `label` (repeatable) and `options` (JSON)."""

from contextlib import aclosing

from fastapi import Request

from app.audio.service import Uploads
from app.errors import RequestInvalid
from app.http import bodies, multipart
from app.http.problems import field_error
from app.http.validation import validate
from app.job_api.schemas import AudioReference
from app.separations.schemas import Options, SeparationCreate, Target
from app.settings import Settings

TARGET = "target"  # the name of the target that the `query` files of a form are examples of
_TEXT_BYTES = 1024  # of one label


async def read(request: Request, settings: Settings, uploads: Uploads) -> SeparationCreate:
    """Read a JSON body, or receive a form's files and make the same of its fields.

    Raises `RequestInvalid`, `RequestValidationError`, and what reading a body and receiving a file raise.
    """
    if not bodies.is_form(request):
        return validate(SeparationCreate, await bodies.read_json(request, settings))
    mixture: str | None = None
    queries: list[str] = []
    labels: list[str] = []
    options: Options | None = None
    async with aclosing(multipart.parts(request, settings, files=1 + settings.examples)) as form:
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
    return _separation(mixture, queries, labels, options or Options())


def _separation(mixture: str, queries: list[str], labels: list[str], options: Options) -> SeparationCreate:
    targets: list[Target] = []
    if queries:
        targets.append(Target(name=TARGET, examples=[AudioReference(audio_id=audio_id) for audio_id in queries]))
    targets += [validate(Target, {"label": label}) for label in labels]
    if not targets and options.auto is None:
        raise RequestInvalid("The form has no target.", [field_error("Send query files, or labels.", "query")])
    if targets and options.auto is not None:
        raise RequestInvalid(
            "Give either targets or auto, not both.", [field_error("Not with query or label.", "options", "auto")]
        )
    fields = {field: getattr(options, field) for field in Options.model_fields}
    return SeparationCreate(mixture=AudioReference(audio_id=mixture), targets=targets or None, **fields)
