"""`/v1/audio` by the tus protocol 1.0 (tus.io/protocols/resumable-upload), with creation, termination and expiration.

A POST with `Tus-Resumable` creates an upload. Its URL is that of the audio, which exists when all bytes have arrived.
"""

from base64 import b64decode
from email.utils import formatdate
from functools import partial

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from app.audio import resumable
from app.dependencies import Dependencies, InjectedDependencies
from app.errors import MediaTypeUnsupported, RequestInvalid, TusVersionUnsupported
from app.http import bodies
from app.http.openapi import FILE, problems
from app.records.audio import Audio

router = APIRouter(prefix="/v1/audio", tags=["audio"])

_MEDIA_TYPE = "application/offset+octet-stream"
_MAX_METADATA = 4096  # characters: a file name of 255 takes up to 1400


def is_tus(request: Request) -> bool:
    """Whether a request is one of the protocol."""
    return "tus-resumable" in request.headers


async def create(request: Request, deps: Dependencies) -> Response:
    """Create an upload that is sent by PATCH requests. Raises `RequestInvalid` and what `resumable.create` raises."""
    _require_version(request)
    size, metadata = _number(request, "Upload-Length"), request.headers.get("upload-metadata", "")
    if not size:
        raise RequestInvalid("An empty file is no audio.")
    filename = _filename(metadata)
    await deps.budgets.redis_memory.require_room()
    await deps.storage.require_bucket()
    pending = await run_in_threadpool(resumable.create, deps, size, filename, metadata)
    return Response(
        status_code=201,
        headers={"Location": f"/v1/audio/{pending.id}", "Upload-Expires": formatdate(pending.expires_at, usegmt=True)},
    )


@router.options("", include_in_schema=False)
def options(deps: InjectedDependencies) -> Response:
    """Say what of the protocol there is."""
    return Response(
        status_code=204,
        headers={
            "Tus-Resumable": TusVersionUnsupported.supported,
            "Tus-Version": TusVersionUnsupported.supported,
            "Tus-Extension": "creation,expiration,termination",
            "Tus-Max-Size": str(deps.settings.upload_bytes),
        },
    )


@router.head("/{audio_id}", include_in_schema=False)
def head(audio_id: str, request: Request, deps: InjectedDependencies) -> Response:
    """Say how much of an upload has arrived."""
    _require_version(request)
    offset, record = resumable.find(deps, audio_id)
    headers = {"Upload-Offset": str(offset), "Upload-Length": str(record.bytes), "Cache-Control": "no-store"}
    if not isinstance(record, Audio):
        headers["Upload-Expires"] = formatdate(record.expires_at, usegmt=True)
        if record.metadata:
            headers["Upload-Metadata"] = record.metadata
    return Response(headers=headers)


@router.patch(
    "/{audio_id}",
    status_code=204,
    openapi_extra={
        "requestBody": {"required": True, "content": {_MEDIA_TYPE: {"schema": FILE}}},
        "parameters": [
            {"name": "Tus-Resumable", "in": "header", "required": True, "schema": {"const": "1.0.0"}},
            {"name": "Upload-Offset", "in": "header", "required": True, "schema": {"type": "integer", "minimum": 0}},
        ],
    },
    responses=problems(404, 408, 409, 412, 413, 415, 422, 503),
)
async def append(audio_id: str, request: Request, deps: InjectedDependencies) -> Response:
    """Send bytes of a resumable upload (tus 1.0), which a POST with `Tus-Resumable` and `Upload-Length` creates; the
    last ones complete it, and it is probed."""
    _require_version(request)
    if bodies.media_type(request) != _MEDIA_TYPE:
        raise MediaTypeUnsupported(f"Send {_MEDIA_TYPE}.")
    offset = _number(request, "Upload-Offset")
    arrived = await resumable.append(deps, audio_id, offset, partial(bodies.chunks, request, deps.settings))
    return Response(status_code=204, headers={"Upload-Offset": str(arrived)})


def _require_version(request: Request) -> None:
    if request.headers.get("tus-resumable") != TusVersionUnsupported.supported:
        raise TusVersionUnsupported(f"Send Tus-Resumable: {TusVersionUnsupported.supported}.")


def _number(request: Request, name: str) -> int:
    text = request.headers.get(name, "")
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise RequestInvalid(f"{name} must be a number of bytes.")
    return int(text)


def _filename(metadata: str) -> str | None:
    """Return the file name of `Upload-Metadata`: pairs of a word and base64, separated by commas."""
    if len(metadata) > _MAX_METADATA:
        raise RequestInvalid(f"Upload-Metadata may have {_MAX_METADATA} characters.")
    pairs = (pair.strip().partition(" ") for pair in metadata.split(","))
    encoded = next((value for name, _, value in pairs if name == "filename"), "")
    try:
        return b64decode(encoded, validate=True).decode("utf-8", "replace")
    except ValueError as error:
        raise RequestInvalid("The filename in Upload-Metadata is not base64.") from error
