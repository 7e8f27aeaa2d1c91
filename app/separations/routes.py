"""`/v1/separations`: jobs that separate sounds from a mixture."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool

from app.audio import peaks, spectrograms
from app.audio.drawing_parameters import SPECTROGRAM, End, Height, Points, Start, Width
from app.audio.drawings import CACHE_CONTROL, Drawable
from app.audio.schemas import PeaksAnswer
from app.audio.service import receive_uploads
from app.dependencies import Dependencies, InjectedDependencies
from app.http.openapi import FILE, json_or_form, problems
from app.http.ranges import attachment, object_response
from app.job_api.routes import accepted_response, add_job_routes
from app.separations import forms, service
from app.separations.schemas import SeparationAnswer, SeparationCreate

router = APIRouter(prefix="/v1/separations", tags=["separations"])

FileName = Annotated[
    str | None,
    Query(min_length=1, max_length=255, pattern=r"^[^/\\\x00-\x1f\x7f]+$", description="name of the downloaded file"),
]
_BODY = json_or_form(
    SeparationCreate,
    {
        "mixture": FILE,
        "query": {"type": "array", "items": FILE, "description": "examples of one target, named `target`"},
        "span": {
            "type": "array",
            "items": {"type": "string"},
            "description": "START-END in seconds, such as `3.2-5.0`: parts of the mixture that are heard for one "
            "target, named `span`",
        },
        "label": {"type": "array", "items": {"type": "string"}, "description": "a target each"},
        "text": {"type": "array", "items": {"type": "string"}, "description": "a target each, in words of your own"},
        "not_query": {
            "type": "array",
            "items": FILE,
            "description": "examples of a sound that the targets are not, though similar",
        },
        "not_label": {"type": "string", "description": "a class that the targets are not, though similar"},
        "track": {
            "type": "integer",
            "minimum": 1,
            "maximum": 1000,
            "description": "audio track of the mixture, from 1",
        },
        "options": {"type": "string", "description": "JSON: the other fields of a JSON body"},
    },
    ["mixture"],
)


@router.post(
    "",
    status_code=202,
    response_model=SeparationAnswer,
    openapi_extra=_BODY,
    responses=problems(404, 408, 409, 413, 415, 422, 503),
)
async def create(request: Request, deps: InjectedDependencies) -> Response:
    """Ask for a separation, as JSON that names uploads or as one form that carries everything."""
    async with receive_uploads(deps) as uploads:
        body = await forms.read(request, deps.settings, uploads)
        job = await run_in_threadpool(service.create, deps, body)
        return await run_in_threadpool(accepted_response, deps, service.SEPARATIONS, job)


add_job_routes(router, service.SEPARATIONS, service.create_again)


@router.head("/{job_id}/stems/{name}", include_in_schema=False)
@router.get(
    "/{job_id}/stems/{name}",
    response_class=Response,
    responses=problems(404, 410, 416, 503)
    | {200: {"content": {"audio/*": {"schema": FILE}}}, 303: {"description": "A signed address in the store"}},
)
async def stem(
    job_id: str,
    name: str,
    request: Request,
    deps: InjectedDependencies,
    redirect: Annotated[bool, Query(description="0: the bytes from this server, not a redirect to the store")] = True,
    download: Annotated[bool, Query(description="1: as an attachment, named after the recording and the stem")] = False,
    filename: FileName = None,
) -> Response:
    """A stem: its bytes, with `Range`, or a redirect to the store where it signs URLs."""
    record, default_name = service.find_stem(deps, await service.SEPARATIONS.load(deps, job_id), name)
    is_attachment = download or filename is not None
    if deps.storage.can_sign and redirect and not is_attachment and request.method == "GET":
        url = await run_in_threadpool(deps.storage.signed_url, record.key, deps.settings.signed_url_seconds)
        return RedirectResponse(url, status_code=303, headers={"Cache-Control": "no-store"})
    return await object_response(
        request,
        deps.storage,
        record.key,
        size=record.bytes,
        sha256=record.sha256,
        content_type=record.content_type,
        filename=(filename or default_name) if is_attachment else None,
    )


@router.get("/{job_id}/stems/{name}/peaks", responses=problems(404, 410, 422, 503))
async def stem_peaks(
    job_id: str,
    name: str,
    request: Request,
    response: Response,
    deps: InjectedDependencies,
    points: Points = 2000,
    start: Start = 0.0,
    end: End = None,
) -> PeaksAnswer:
    """The peaks of a stem's waveform, like those of an upload."""
    answer = await peaks.peaks(request, deps, await _drawable(deps, job_id, name), points, start, end)
    response.headers["Cache-Control"] = CACHE_CONTROL
    return answer


@router.get(
    "/{job_id}/stems/{name}/spectrogram", response_class=Response, responses=problems(404, 410, 422, 503) | SPECTROGRAM
)
async def stem_spectrogram(
    job_id: str,
    name: str,
    request: Request,
    deps: InjectedDependencies,
    start: Start = 0.0,
    end: End = None,
    width: Width = 1000,
    height: Height = 256,
) -> Response:
    """The spectrogram of a stem as a PNG, like that of an upload."""
    drawn = await _drawable(deps, job_id, name)
    return await spectrograms.respond(request, deps, drawn, start, end, width, height)


async def _drawable(deps: Dependencies, job_id: str, name: str) -> Drawable:
    record, _ = service.find_stem(deps, await service.SEPARATIONS.load(deps, job_id), name)
    return Drawable(record.key, record.bytes)


@router.get(
    "/{job_id}/archive",
    response_class=StreamingResponse,
    responses=problems(404, 410, 503) | {200: {"content": {"application/zip": {"schema": FILE}}}},
)
async def archive(job_id: str, deps: InjectedDependencies, filename: FileName = None) -> StreamingResponse:
    """All stems in one zip, not compressed."""
    job = await service.SEPARATIONS.load(deps, job_id)
    content, default_name = await run_in_threadpool(service.stream_archive, deps, job)
    headers = {"Content-Disposition": attachment(filename or default_name), "Cache-Control": "private, no-cache"}
    return StreamingResponse(content, headers=headers, media_type="application/zip")
