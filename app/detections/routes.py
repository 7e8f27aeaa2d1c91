"""`/v1/detections`: which classes sound in a recording, and when."""

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from app.audio.service import Uploads, receive_uploads
from app.dependencies import InjectedDependencies
from app.detections import service
from app.detections.schemas import DetectionAnswer, DetectionCreate, DetectionOptions
from app.http import bodies
from app.http.forms import file_field, json_field, read_form
from app.http.openapi import FILE, json_or_form, problems
from app.http.ranges import object_response
from app.http.validation import validate
from app.job_api.routes import accepted_response, add_job_routes
from app.settings import Settings

router = APIRouter(prefix="/v1/detections", tags=["detections"])

_BODY = json_or_form(
    DetectionCreate,
    {"file": FILE, "options": {"type": "string", "description": "JSON: the other fields of a JSON body"}},
    ["file"],
)


@router.post(
    "",
    status_code=202,
    response_model=DetectionAnswer,
    openapi_extra=_BODY,
    responses=problems(404, 408, 413, 415, 422, 503),
)
async def create(request: Request, deps: InjectedDependencies) -> Response:
    """Detect what sounds in a recording, and when; as JSON that names an upload, or as a form that carries it."""
    async with receive_uploads(deps) as uploads:
        body = await _read(request, deps.settings, uploads)
        job = await run_in_threadpool(service.create, deps, body)
        return await run_in_threadpool(accepted_response, deps, service.DETECTIONS, job)


add_job_routes(router, service.DETECTIONS, service.create_again)


@router.head("/{job_id}/timeline.png", include_in_schema=False)
@router.get(
    "/{job_id}/timeline.png",
    response_class=Response,
    responses=problems(404, 410, 416, 503) | {200: {"content": {"image/png": {"schema": FILE}}}},
)
async def timeline(job_id: str, request: Request, deps: InjectedDependencies) -> Response:
    """The timeline as a picture: the likeliest classes over time, with their events."""
    picture = service.find_picture(deps, await service.DETECTIONS.load(deps, job_id))
    return await object_response(
        request, deps.storage, picture.key, size=picture.bytes, sha256=picture.sha256, content_type="image/png"
    )


async def _read(request: Request, settings: Settings, uploads: Uploads) -> DetectionCreate:
    """Read a JSON body, or receive a form's file and make the same of its fields."""
    if not bodies.is_form(request):
        return validate(DetectionCreate, await bodies.read_json(request, settings))
    file = file_field("file", uploads.receive, is_required=True)
    options = json_field("options", DetectionOptions, settings.body_bytes)
    await read_form(request, settings, file, options)
    fields = (options.value or DetectionOptions()).model_dump(exclude_unset=True)
    return DetectionCreate(audio_id=file.values[0].id, **fields)
