"""`/v1/separations`: jobs."""

from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import RedirectResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool

from app import bodies, multipart, sse, waiting
from app.audio.service import received
from app.conditional import has_already
from app.lifecycle import OVER, Status
from app.openapi import form_schema, problems, reference
from app.ranges import object_response
from app.sent import validated
from app.separations import forms, service
from app.separations.records import file_name
from app.separations.schemas import SeparationAnswer, SeparationCreate, SeparationsAnswer
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
            sent = validated(SeparationCreate, body)
        job = await run_in_threadpool(service.create, parts, sent)
    answer = await run_in_threadpool(service.tell, parts, job)
    response.headers["Location"] = f"/v1/separations/{answer.id}"
    response.headers["Retry-After"] = str(parts.settings.poll_seconds)
    return answer


@router.get("", responses=problems(422, 503))
def newest(
    parts: UsesParts,
    status: Annotated[Status | None, Query(description="only those in this state")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    cursor: Annotated[str | None, Query(max_length=64, description="`next_cursor` of the page before")] = None,
) -> SeparationsAnswer:
    """Separations, the newest first; a page may be short where few are in the state asked for."""
    answers, following = service.newest(parts, status, limit, cursor)
    return SeparationsAnswer(data=answers, next_cursor=following, has_more=following is not None)


@router.get(
    "/{separation_id}",
    response_model=SeparationAnswer,
    responses=problems(404, 503) | {304: {"description": "Not changed"}},
)
async def get(
    separation_id: str,
    request: Request,
    response: Response,
    parts: UsesParts,
    prefer: Annotated[str, Header(description="`wait=SECONDS`, at most 60")] = "",
) -> SeparationAnswer | Response:
    """The job as it stands; poll it after `Retry-After` seconds.

    With `Prefer: wait=SECONDS` the answer comes when the job is over, or with `If-None-Match` when it differs.
    """
    conditional = "if-none-match" in request.headers

    def look() -> tuple[SeparationAnswer, int, bool]:
        job = service.find(parts, separation_id)
        answer = service.tell(parts, job)
        is_news = answer.status in OVER or (conditional and not has_already(request, service.etag(answer)))
        return answer, job.revision, is_news

    wait = waiting.preferred(prefer, parts.settings)
    answer = await waiting.until_news(request, parts.feed, separation_id, wait, look)
    headers = _polling(parts, answer) | {"ETag": service.etag(answer), "Cache-Control": "private, no-cache"}
    if wait:
        headers["Preference-Applied"] = f"wait={wait}"
    if has_already(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    response.headers.update(headers)
    return answer


@router.get("/{separation_id}/events", response_class=Response, responses=problems(404, 503) | sse.DESCRIPTION)
async def events(separation_id: str, request: Request, parts: UsesParts) -> Response:
    """What happens to the job, as server-sent events; each one's data is the job as a poll would tell it.

    All of them are replayed, or those after `Last-Event-ID`. The stream closes after the last one.
    """
    job = await run_in_threadpool(service.find, parts, separation_id)
    return sse.stream(request, parts, job, service.tell)


@router.post("/{separation_id}/cancel", status_code=202, responses=problems(404, 409, 503))
def cancel(separation_id: str, response: Response, parts: UsesParts) -> SeparationAnswer:
    """Cancel a waiting job, or ask a running one to stop; a repeat answers the same, 409 once it is over."""
    answer = service.tell(parts, parts.jobs.cancel(service.find(parts, separation_id).id))
    response.headers.update(_polling(parts, answer))
    return answer


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
        filename=file_name(found) if download else None,
    )


@router.get(
    "/{separation_id}/archive",
    response_class=StreamingResponse,
    responses=problems(404, 410, 503) | {200: {"content": {"application/zip": {}}}},
)
def archive(separation_id: str, parts: UsesParts) -> StreamingResponse:
    """All stems in one zip, not compressed."""
    content = service.archived(parts, separation_id)
    headers = {
        "Content-Disposition": f'attachment; filename="{separation_id}.zip"',
        "Cache-Control": "private, no-cache",
    }
    return StreamingResponse(content, headers=headers, media_type="application/zip")


def _polling(parts: Parts, answer: SeparationAnswer) -> dict[str, str]:
    return {} if answer.status in OVER else {"Retry-After": str(parts.settings.poll_seconds)}
