"""`/v1/separations`: jobs."""

from contextlib import aclosing
from pathlib import PurePosixPath
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse
from starlette.concurrency import run_in_threadpool

from app import bodies, multipart
from app.audio.service import received
from app.lifecycle import Job
from app.openapi import form_schema, problems, reference
from app.ranges import object_response
from app.separations import forms, service
from app.separations.schemas import SeparationAnswer, SeparationCreate
from app.wiring import Parts, UsesParts

router = APIRouter(prefix="/v1/separations", tags=["separations"])

_FILE = {"type": "string", "format": "binary"}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": reference(SeparationCreate),
            "multipart/form-data": form_schema(
                {
                    "mixture": _FILE,
                    "query": {"type": "array", "items": _FILE, "description": "examples of one target"},
                    "label": {"type": "array", "items": {"type": "string"}, "description": "a target each"},
                    "options": {"type": "string", "description": "JSON: output, model, metadata"},
                },
                ["mixture"],
            ),
        },
    }
}


@router.post("", status_code=202, openapi_extra=_BODY, responses=problems(404, 408, 413, 415, 422, 503))
async def create(request: Request, response: Response, parts: UsesParts) -> SeparationAnswer:
    """Ask for a separation, by JSON that names uploads or by one form that carries everything."""
    async with received(parts) as uploads:
        if bodies.media_type(request) == "multipart/form-data":
            async with aclosing(multipart.parts(request, parts.settings, forms.files(parts.settings))) as form:
                sent = await forms.read(form, uploads, parts.settings)
        else:
            body = await bodies.read_json(request, parts.settings)
            sent = forms.validated(SeparationCreate, body)
        job = await run_in_threadpool(service.create, parts, sent)
    answer = await run_in_threadpool(service.tell, parts, job)
    response.headers["Location"] = answer.url
    response.headers["Retry-After"] = str(parts.settings.poll_seconds)
    return answer


@router.get(
    "/{separation_id}",
    response_model=SeparationAnswer,
    responses=problems(404, 503) | {304: {"description": "Not changed"}},
)
def get(separation_id: str, request: Request, response: Response, parts: UsesParts) -> SeparationAnswer | Response:
    """The job as it stands; poll it after `Retry-After` seconds."""
    answer = service.tell(parts, job := service.find(parts, separation_id))
    headers = _polling(parts, job) | {"ETag": service.etag(answer), "Cache-Control": "private, no-cache"}
    if headers["ETag"] in (tag.strip() for tag in request.headers.get("if-none-match", "").split(",")):
        return Response(status_code=304, headers=headers)
    response.headers.update(headers)
    return answer


@router.post("/{separation_id}/cancel", status_code=202, responses=problems(404, 409, 503))
def cancel(separation_id: str, response: Response, parts: UsesParts) -> SeparationAnswer:
    """Cancel a waiting job, or ask a running one to stop; a repeat answers the same, 409 once it is over."""
    job = parts.jobs.cancel(service.find(parts, separation_id).id)
    response.headers.update(_polling(parts, job))
    return service.tell(parts, job)


@router.delete("/{separation_id}", status_code=204, responses=problems(404, 503))
def delete(separation_id: str, parts: UsesParts) -> None:
    """Delete a job and its stems; one that is not over is canceled."""
    service.delete(parts, separation_id)


@router.head("/{separation_id}/stems/{name}", include_in_schema=False)
@router.get(
    "/{separation_id}/stems/{name}",
    response_class=Response,
    responses=problems(404, 410, 416, 503) | {303: {"description": "A signed address in the store"}},
)
async def stem(
    separation_id: str,
    name: str,
    request: Request,
    parts: UsesParts,
    redirect: Annotated[bool, Query(description="0: the bytes from here, where the store would be asked")] = True,
    download: Annotated[bool, Query(description="1: with a file name to save it under")] = False,
) -> Response:
    """A stem: the bytes with `Range`, or where the store can sign, the way to them."""
    found = await run_in_threadpool(service.stem, parts, separation_id, name)
    if parts.storage.signs and redirect and not download and request.method == "GET":
        url = await run_in_threadpool(parts.storage.signed_url, found.key, parts.settings.signed_url_seconds)
        return RedirectResponse(url, status_code=303, headers={"Cache-Control": "no-store"})
    return await object_response(
        request,
        parts.storage,
        found.key,
        size=found.bytes,
        sha256=found.sha256,
        content_type=found.content_type,
        filename=f"{found.name}{PurePosixPath(found.key).suffix}" if download else None,
    )


def _polling(parts: Parts, job: Job) -> dict[str, str]:
    return {} if job.over else {"Retry-After": str(parts.settings.poll_seconds)}
