"""`/v1/queries`: saved queries."""

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from app.audio.service import Uploads, receive_uploads
from app.dependencies import InjectedDependencies
from app.http import bodies
from app.http.forms import file_field, json_field, read_form, text_field
from app.http.openapi import FILE, json_or_form, problems
from app.http.validation import validate
from app.job_api.routes import accepted_response, add_job_routes
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
        return await run_in_threadpool(accepted_response, deps, service.QUERIES, job)


add_job_routes(router, service.QUERIES, service.create_again)


async def _read(request: Request, settings: Settings, uploads: Uploads) -> QueryCreate:
    """Read a JSON body, or receive a form's files and make the same of its fields."""
    if not bodies.is_form(request):
        return validate(QueryCreate, await bodies.read_json(request, settings))
    name = text_field("name", _NAME_BYTES)
    examples = file_field("examples", uploads.receive, limit=settings.examples, is_required=True)
    options = json_field("options", JobOptions, settings.body_bytes)
    await read_form(request, settings, name, examples, options)
    fields = (options.value or JobOptions()).model_dump(exclude_unset=True)
    fields["examples"] = [{"audio_id": example.id} for example in examples.values]
    return validate(QueryCreate, fields if name.value is None else {**fields, "name": name.value})
