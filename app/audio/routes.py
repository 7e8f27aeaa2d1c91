"""`/v1/audio`: uploads."""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from app.audio import completion, peaks, presigned, service, spectrograms, tus
from app.audio.drawing_parameters import SPECTROGRAM, End, Height, Points, Start, Width
from app.audio.drawings import CACHE_CONTROL, Drawable
from app.audio.schemas import AudioAnswer, AwaitedAudio, DirectUpload, PeaksAnswer, PresignAnswer, PresignSent, UrlSent
from app.dependencies import InjectedDependencies
from app.errors import NotFound
from app.http import bodies
from app.http.forms import file_field, read_form
from app.http.openapi import FILE, json_or_form, problems, reference
from app.http.ranges import object_response
from app.http.validation import validate
from app.records.audio import store_key

router = APIRouter(prefix="/v1/audio", tags=["audio"])

TrackNumber = Annotated[
    int | None, Query(ge=1, le=1000, description="audio track, from 1; default: the first that can be read")
]


@router.post(
    "",
    status_code=201,
    response_model=AudioAnswer,
    openapi_extra=json_or_form(UrlSent, {"file": FILE}, ["file"]),
    responses=problems(408, 413, 415, 422, 503),
)
async def upload(request: Request, response: Response, deps: InjectedDependencies) -> AudioAnswer | Response:
    """Upload a recording as the form field `file`, or by its URL; it is streamed to the store and probed.

    With the headers `Tus-Resumable: 1.0.0` and `Upload-Length`, and without a body, it creates a resumable upload
    (tus.io), which PATCH requests to its `Location` continue, also after an interruption.
    """
    if tus.is_tus(request):
        return await tus.create(request, deps)
    async with service.receive_uploads(deps) as uploads:
        if bodies.is_json(request):
            body = validate(UrlSent, await bodies.read_json(request, deps.settings))
            await bodies.run_while_connected(request, uploads.fetch(body.url))
        else:
            file = file_field("file", uploads.receive, is_required=True)
            await read_form(request, deps.settings, file)
    answer = service.to_answer(deps, uploads.created[0])
    response.headers["Location"] = f"/v1/audio/{answer.id}"
    return answer


@router.post(
    "/presign",
    status_code=201,
    openapi_extra={"requestBody": {"required": True, "content": {"application/json": reference(PresignSent)}}},
    responses=problems(408, 409, 413, 415, 422, 503),
)
async def presign(request: Request, deps: InjectedDependencies) -> PresignAnswer:
    """Get a presigned URL that uploads a recording straight to the store; PUT the file there, then complete it."""
    await deps.budgets.redis_memory.require_room()
    body = validate(PresignSent, await bodies.read_json(request, deps.settings))
    await deps.storage.require_bucket()
    pending, url, url_expires_at = await run_in_threadpool(presigned.presign, deps, body)
    headers = {"Content-Type": body.content_type} if body.content_type else {}
    upload = DirectUpload(url=url, headers=headers, expires_at=datetime.fromtimestamp(url_expires_at, UTC))
    return PresignAnswer(audio=AwaitedAudio.from_record(pending), upload=upload)


@router.post("/{audio_id}/complete", responses=problems(404, 409, 413, 422, 503))
async def complete(audio_id: str, deps: InjectedDependencies) -> AudioAnswer:
    """Complete a presigned upload: the file is checked and probed, and deleted if it is not accepted."""
    return service.to_answer(deps, await presigned.complete(deps, audio_id))


@router.get("/{audio_id}", responses=problems(404, 503))
def get(audio_id: str, deps: InjectedDependencies) -> AudioAnswer:
    """Get an upload's properties."""
    return service.to_answer(deps, service.find(deps, audio_id))


@router.delete("/{audio_id}", status_code=204, responses=problems(404, 409, 503))
def delete(audio_id: str, deps: InjectedDependencies) -> None:
    """Delete an upload, also one that is not complete; 409 while an unfinished job needs it."""
    try:
        service.delete(deps, audio_id)
    except NotFound:
        completion.give_up(deps, audio_id)


@router.head("/{audio_id}/content", include_in_schema=False)
@router.get("/{audio_id}/content", response_class=Response, responses=problems(404, 416, 503))
async def content(audio_id: str, request: Request, deps: InjectedDependencies) -> Response:
    """Download the bytes as they were uploaded; `Range` is supported."""
    audio = await service.find_async(deps, audio_id)
    return await object_response(
        request,
        deps.storage,
        store_key(audio.id),
        size=audio.bytes,
        sha256=audio.sha256,
        content_type=audio.content_type,
    )


@router.get("/{audio_id}/peaks", responses=problems(404, 422, 503))
async def get_peaks(
    audio_id: str,
    request: Request,
    response: Response,
    deps: InjectedDependencies,
    points: Points = 2000,
    start: Start = 0.0,
    end: End = None,
    track: TrackNumber = None,
) -> PeaksAnswer:
    """Get the waveform's peaks: the minimum and maximum sample of each channel at each point."""
    drawn = Drawable.of_upload(await service.find_async(deps, audio_id), track)
    answer = await peaks.peaks(request, deps, drawn, points, start, end)
    response.headers["Cache-Control"] = CACHE_CONTROL
    return answer


@router.get("/{audio_id}/spectrogram", response_class=Response, responses=problems(404, 422, 503) | SPECTROGRAM)
async def get_spectrogram(
    audio_id: str,
    request: Request,
    deps: InjectedDependencies,
    start: Start = 0.0,
    end: End = None,
    width: Width = 1000,
    height: Height = 256,
    track: TrackNumber = None,
) -> Response:
    """Get the spectrogram as a PNG, of all channels together: frequency from 40 Hz at the bottom to 16 kHz, or half the
    sample rate if that is less, at the top, on a logarithmic axis.

    Colors stand for -80 to -10 dB, where a sine of full scale has 0 dB; what is fainter is transparent. Of equal scales
    (seconds a pixel), sections whose starts differ by whole pixels fit together as tiles.
    """
    drawn = Drawable.of_upload(await service.find_async(deps, audio_id), track)
    return await spectrograms.respond(request, deps, drawn, start, end, width, height)
