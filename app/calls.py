"""The calls that jobs of every kind answer: the list, the job by polls long and short, its events, cancel, delete."""

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from app import sse, waiting
from app.conditional import has_already
from app.contract import Answer, JobAnswer, Page
from app.lifecycle import OVER, Job, Status
from app.openapi import problems
from app.resource import Resource
from app.wiring import Parts, UsesParts


async def accepted(resource: Resource[Answer], parts: Parts, job: Job, response: Response) -> Answer:
    """The answer to the call that made a job, with where to look and when."""
    answer = await run_in_threadpool(resource.tell, parts, job)
    response.headers["Location"] = f"/v1/{resource.kind.folder}/{answer.id}"
    response.headers.update(_polling(parts, answer))
    return answer


def add_calls(router: APIRouter, resource: Resource[Answer]) -> None:
    """Add them to the router of a kind of job."""
    name = resource.kind.name

    def newest(
        parts: UsesParts,
        status: Annotated[Status | None, Query(description="only those in this state")] = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        cursor: Annotated[str | None, Query(max_length=64, description="`next_cursor` of the page before")] = None,
    ) -> Page[Answer]:
        answers, following = resource.newest(parts, status, limit, cursor)
        return Page[resource.answer](data=answers, next_cursor=following, has_more=following is not None)

    async def get(
        job_id: str,
        request: Request,
        response: Response,
        parts: UsesParts,
        prefer: Annotated[str, Header(description="`wait=SECONDS`, at most 60")] = "",
    ) -> Answer | Response:
        return await _get(resource, job_id, request, response, parts, prefer)

    async def events(job_id: str, request: Request, parts: UsesParts) -> Response:
        job = await run_in_threadpool(resource.find, parts, job_id)
        return sse.stream(request, parts, job, resource.tell)

    def cancel(job_id: str, response: Response, parts: UsesParts) -> Answer:
        answer = resource.tell(parts, parts.jobs.cancel(resource.find(parts, job_id).id))
        response.headers.update(_polling(parts, answer))
        return answer

    def delete(job_id: str, parts: UsesParts) -> None:
        resource.delete(parts, job_id)

    router.add_api_route(
        "",
        newest,
        response_model=Page[resource.answer],
        responses=problems(422, 503),
        summary=f"List {resource.kind.folder}",
        description="The newest first; a page may be short where few are in the state asked for.",
    )
    router.add_api_route(
        "/{job_id}",
        get,
        response_model=resource.answer,
        responses=problems(404, 503) | {304: {"description": "Not changed"}},
        summary=f"Get a {name}",
        description="As it stands; poll it after `Retry-After` seconds. With `Prefer: wait=SECONDS` the answer comes "
        "when the job is over, or with `If-None-Match` when it differs.",
    )
    router.add_api_route(
        "/{job_id}/events",
        events,
        response_class=Response,
        responses=problems(404, 503) | sse.DESCRIPTION,
        summary=f"Follow a {name}",
        description="What happens to it, as server-sent events; each one's data is the job as a poll would tell it. "
        "All of them are replayed, or those after `Last-Event-ID`. The stream closes after the last one.",
    )
    router.add_api_route(
        "/{job_id}/cancel",
        cancel,
        methods=["POST"],
        status_code=202,
        response_model=resource.answer,
        responses=problems(404, 409, 503),
        summary=f"Cancel a {name}",
        description="One that waits is canceled at once, one that runs is asked to stop; a repeat answers the same, "
        "409 once it is over.",
    )
    router.add_api_route(
        "/{job_id}",
        delete,
        methods=["DELETE"],
        status_code=204,
        responses=problems(404, 503),
        summary=f"Delete a {name}",
        description="With everything that it made; one that is not over is canceled.",
    )


async def _get(
    resource: Resource[Answer], job_id: str, request: Request, response: Response, parts: Parts, prefer: str
) -> Answer | Response:
    conditional = "if-none-match" in request.headers

    def look() -> tuple[Answer, int, bool]:
        job = resource.find(parts, job_id)
        answer = resource.tell(parts, job)
        is_news = answer.status in OVER or (conditional and not has_already(request, resource.etag(answer)))
        return answer, job.revision, is_news

    wait = waiting.preferred(prefer, parts.settings)
    answer = await waiting.until_news(request, parts.feed, job_id, wait, look)
    headers = _polling(parts, answer) | {"ETag": resource.etag(answer), "Cache-Control": "private, no-cache"}
    if wait:
        headers["Preference-Applied"] = f"wait={wait}"
    if has_already(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    response.headers.update(headers)
    return answer


def _polling(parts: Parts, answer: JobAnswer) -> dict[str, str]:
    return {} if answer.status in OVER else {"Retry-After": str(parts.settings.poll_seconds)}
