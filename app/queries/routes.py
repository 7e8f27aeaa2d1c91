"""`/v1/queries`: saved queries."""

from contextlib import aclosing

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from app.audio.service import Uploads, receive_uploads
from app.dependencies import InjectedDependencies
from app.errors import RequestInvalid
from app.http import bodies, multipart
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
        "options": {"type": "string", "description": "JSON: the other fields of a JSON body"},
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
    async with receive_uploads(deps) as uploads:
        body = await _read(request, deps.settings, uploads)
        job = await run_in_threadpool(service.create, deps, body)
        return await run_in_threadpool(accepted, deps, service.QUERIES, job)


add_job_routes(router, service.QUERIES)


async def _read(request: Request, settings: Settings, uploads: Uploads) -> QueryCreate:
    """Read a JSON body, or receive a form's files and make the same of its fields."""
    if not bodies.is_form(request):
        return validate(QueryCreate, await bodies.read_json(request, settings))
    name: str | None = None
    options: JobOptions | None = None
    examples: list[str] = []
    async with aclosing(multipart.parts(request, settings, files=settings.examples)) as form:
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
    fields["examples"] = [{"audio_id": audio_id} for audio_id in examples]
    return validate(QueryCreate, fields if name is None else {**fields, "name": name})
