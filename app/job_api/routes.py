"""Routes of jobs of every kind: list, get (poll, long poll), events, cancel, retry, delete; and the 202 response."""

import asyncio
import json
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from app.dependencies import Dependencies, InjectedDependencies
from app.errors import NotFound, RecordUnreadable
from app.http.conditional import matches_etag
from app.http.openapi import problems
from app.http.validation import require_known_parameters
from app.job_api import event_stream, long_poll
from app.job_api.resource import JobResource
from app.job_api.schemas import Answer, Page
from app.jobs.lifecycle import TERMINAL, Job, Status
from app.jobs.listing import record_key
from app.jobs.poll_cache import PollResponse, parse_poll
from app.jobs.repository import QueuedJob
from app.keys import callers
from app.keys.callers import Caller


class PollRoute(Route):
    """A fast path to `GET /v1/KIND/ID`, to be tried before all other routes.

    Polls are most of all requests, and FastAPI's routing and dependencies cost several times what their response does.
    """

    def __init__(self, resource: JobResource[Any], deps: Dependencies) -> None:
        path = f"/v1/{resource.kind.folder}/{{job_id}}"
        super().__init__(path, self._respond, methods=["GET"], include_in_schema=False)
        self._resource = resource
        self._deps = deps

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match a GET of a well-formed id; everything else is left to the routes that follow."""
        polled = parse_poll(scope) if scope["type"] == "http" else None
        if polled is None or polled[0] is not self._resource.kind:
            return Match.NONE, {}
        return Match.FULL, {"route": self, "path_params": {"job_id": polled[1]}}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond; errors are left to the application's handlers, as those of other routes are."""
        await (await self._respond(Request(scope, receive)))(scope, receive, send)

    async def _respond(self, request: Request) -> Response:
        return await _get(self._resource, self._deps, callers.get_caller(request), request)


def accepted_response(deps: Dependencies, resource: JobResource[Any], queued: QueuedJob) -> Response:
    """Return the response to a request that created a job: 202, with its address in `Location` and `Retry-After`."""
    answer = resource.render(deps, queued.job, queued.position)
    headers = {"Location": f"/v1/{resource.kind.folder}/{answer.id}"} | _retry_after(deps, answer.status)
    return Response(answer.model_dump_json(), 202, media_type="application/json", headers=headers)


def add_job_routes(
    router: APIRouter, resource: JobResource[Answer], create_again: Callable[[Dependencies, Job], QueuedJob]
) -> None:
    """Add the routes to the router of a kind of job; `create_again` is for `JobResource.retry`."""
    name = resource.kind.name

    async def newest(
        deps: InjectedDependencies,
        status: Annotated[Status | None, Query(description="only jobs in this state")] = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        cursor: Annotated[str | None, Query(max_length=64, description="`next_cursor` of the previous page")] = None,
    ) -> Response:
        jobs, next_cursor = await run_in_threadpool(resource.page, deps, status, limit, cursor)
        return Response(await _render_page(deps, resource, jobs, next_cursor), media_type="application/json")

    async def get(
        job_id: str,
        request: Request,
        deps: InjectedDependencies,
        prefer: Annotated[str, Header(description="`wait=SECONDS`, by default at most 60")] = "",
    ) -> Response:
        resource.require_id(job_id)  # what `PollRoute` leaves to this route is malformed
        return await _get(resource, deps, deps.caller, request)

    async def events(job_id: str, request: Request, deps: InjectedDependencies) -> Response:
        job = await resource.load(deps, job_id)
        return event_stream.stream_events(request, deps, job, resource.to_answer)

    async def cancel(job_id: str, response: Response, deps: InjectedDependencies) -> Answer:
        job = await resource.load(deps, job_id)  # before it is canceled: it fails where the store does not answer
        canceled = await run_in_threadpool(deps.jobs.cancel, job.id)
        canceled = await deps.large_fields_cache.load(canceled)
        answer = await run_in_threadpool(resource.to_answer, deps, canceled)
        response.headers.update(_retry_after(deps, answer.status))
        return answer

    async def retry(job_id: str, deps: InjectedDependencies) -> Response:
        await deps.budgets.redis_memory.require_room()
        queued = await run_in_threadpool(resource.retry, deps, job_id, create_again)
        return await run_in_threadpool(accepted_response, deps, resource, queued)

    def delete(job_id: str, deps: InjectedDependencies) -> None:
        resource.delete(deps, job_id)

    router.add_api_route(
        "",
        newest,
        name="list",
        dependencies=[Depends(require_known_parameters)],
        response_model=Page[resource.answer],
        responses=problems(422, 503),
        summary=f"List {resource.kind.folder}",
        description="The newest first. A page may hold fewer than `limit` where few jobs are in the requested state.",
    )
    router.add_api_route(
        "/{job_id}",
        get,
        response_model=resource.answer,
        responses=problems(404, 503) | {304: {"description": "Not changed"}},
        summary=f"Get a {name}",
        description="Its current state; poll again after `Retry-After` seconds. With `Prefer: wait=SECONDS` (long "
        "poll) the response comes when the job has finished or, with `If-None-Match`, when it differs.",
    )
    router.add_api_route(
        "/{job_id}/events",
        events,
        response_class=Response,
        responses=problems(404, 503) | event_stream.DESCRIPTION,
        summary=f"Follow a {name}",
        description="Its events as server-sent events; the data of each is the job as a poll would return it. All "
        "events are replayed, or those after `Last-Event-ID`. The stream closes after the last one.",
    )
    router.add_api_route(
        "/{job_id}/cancel",
        cancel,
        methods=["POST"],
        status_code=202,
        response_model=resource.answer,
        responses=problems(404, 409, 503),
        summary=f"Cancel a {name}",
        description="A waiting job is canceled at once, a running one is asked to stop; repeating the call is "
        "harmless, 409 once the job has finished.",
    )
    router.add_api_route(
        "/{job_id}/retry",
        retry,
        methods=["POST"],
        status_code=202,
        response_model=resource.answer,
        responses=problems(404, 409, 410, 413, 422, 503),
        summary=f"Retry a {name}",
        description=f"Creates a new {name} with the request, the metadata and the webhook of one that failed or was "
        "canceled, for the model as it is now. 409 in other states, 410 when its uploads are gone.",
    )
    router.add_api_route(
        "/{job_id}",
        delete,
        methods=["DELETE"],
        status_code=204,
        responses=problems(404, 503),
        summary=f"Delete a {name}",
        description="With all its output; a job that has not finished is canceled.",
    )


async def _render_page(deps: Dependencies, resource: JobResource[Any], jobs: list[Job], next_cursor: str | None) -> str:
    """Return a page as JSON. It is made of text, since a hundred large results take ten times as much as objects."""

    async def render(job: Job) -> str | None:
        try:
            complete = await deps.large_fields_cache.load(job)
            return await run_in_threadpool(lambda: resource.to_answer(deps, complete).model_dump_json())
        except NotFound:  # deleted meanwhile
            return None
        except RecordUnreadable:
            await run_in_threadpool(deps.jobs.quarantine.add, record_key(job.id))
            return None

    answers = [answer for answer in await asyncio.gather(*map(render, jobs)) if answer is not None]
    cursor, has_more = json.dumps(next_cursor), json.dumps(next_cursor is not None)
    return f'{{"data":[{",".join(answers)}],"next_cursor":{cursor},"has_more":{has_more}}}'


async def _get(resource: JobResource[Any], deps: Dependencies, caller: Caller, request: Request) -> Response:
    job_id = request.path_params["job_id"]
    is_conditional = "if-none-match" in request.headers

    async def look() -> tuple[PollResponse, int, bool]:
        response = await resource.poll(deps, caller, request.scope, job_id)
        is_news = response.job.is_finished or (is_conditional and not matches_etag(request, response.etag))
        return response, response.job.revision, is_news

    wait = long_poll.parse_wait(",".join(request.headers.getlist("prefer")), deps.settings)
    hold = deps.budgets.streams.hold(caller.key_id)
    response = await long_poll.wait_for_change(request, deps.event_feed, hold, job_id, wait, look)
    headers = _retry_after(deps, response.job.status) | {"ETag": response.etag, "Cache-Control": "private, no-cache"}
    if wait:
        headers["Preference-Applied"] = f"wait={wait}"
    if matches_etag(request, response.etag):
        return Response(status_code=304, headers=headers)
    return Response(response.body, media_type="application/json", headers=headers)


def _retry_after(deps: Dependencies, status: Status) -> dict[str, str]:
    return {} if status in TERMINAL else {"Retry-After": str(deps.settings.poll_seconds)}
