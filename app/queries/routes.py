"""`/v1/queries`: saved queries."""

from collections.abc import AsyncIterator

from fastapi import APIRouter, Request, Response

from app.audio.service import Uploads
from app.dependencies import InjectedDependencies
from app.errors import RequestInvalid
from app.http import multipart
from app.http.multipart import Part
from app.http.openapi import FILE, json_or_form, problems
from app.http.problems import field_error
from app.http.validation import validate
from app.job_api.routes import accepted, add_job_routes
from app.job_api.schemas import JobOptions
from app.queries import service
from app.queries.schemas import QueryAnswer, QueryCreate
from app.settings import Settings

router = APIRouter(prefix="/v1/queries", tags=["queries"])

_NAME_BYTES = 1024
_BODY = json_or_form(
    QueryCreate,
    {
        "name": {"type": "string"},
        "examples": {"type": "array", "items": FILE, "description": "recordings of one sound"},
        "options": {"type": "string", "description": "JSON: all else that a JSON body may hold"},
    },
    ["name", "examples"],
)


@router.post(
    "",
    status_code=202,
    response_model=QueryAnswer,
    openapi_extra=_BODY,
    responses=problems(404, 408, 413, 415, 422, 503),
)
async def create(request: Request, deps: InjectedDependencies) -> Response:
    """Save a query: examples of one sound, as JSON that names uploads or as a form that carries them."""
    files = deps.settings.examples
    return await accepted(request, deps, service.QUERIES, QueryCreate, _read, files, service.create)


add_job_routes(router, service.QUERIES)


async def _read(form: AsyncIterator[Part], uploads: Uploads, settings: Settings) -> QueryCreate:
    """Receive a form's files and make of its fields the request that JSON would have been."""
    name: str | None = None
    options: JobOptions | None = None
    examples: list[str] = []
    async for part in form:
        if part.name == "examples" and part.filename is not None and len(examples) < settings.examples:
            examples.append((await uploads.receive(part)).id)
        elif part.name == "name" and name is None:
            name = await part.text(_NAME_BYTES)
        elif part.name == "options" and options is None:
            options = validate(JobOptions, await part.json(settings.body_bytes), "options")
        else:
            raise multipart.unexpected_part(part)
    if not examples:
        raise RequestInvalid("The form has no examples.", [field_error("Field required.", "examples")])
    fields = (options or JobOptions()).model_dump(exclude_unset=True)
    sent = {**fields, "examples": [{"audio_id": audio_id} for audio_id in examples]}
    return validate(QueryCreate, sent if name is None else {**sent, "name": name})
