"""The calls that jobs of every kind answer: the list, the job by polls long and short, its events, cancel, delete."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from app.audio.service import Uploads, receive_uploads
from app.dependencies import Dependencies, InjectedDependencies
from app.http import bodies, multipart
from app.http.conditional import matches_etag
from app.http.multipart import Part
from app.http.openapi import problems
from app.http.validation import Model, validate
from app.job_api import event_stream, long_poll
from app.job_api.resource import JobResource
from app.job_api.schemas import Answer, Page
from app.jobs.lifecycle import TERMINAL, Job, Status
from app.jobs.poll_cache import PollResponse
from app.keys import callers
from app.keys.callers import Caller
from app.records import ids
from app.settings import Settings


class PollRoute(Route):
    """The short way to what `get` below answers, for whatever can be an id: to be tried before all other routes.

    Polls are most of all requests, and FastAPI's routing and dependencies cost several times what their answer does.
    """

    def __init__(self, resource: JobResource[Any], deps: Dependencies) -> None:
        folder = f"/v1/{resource.kind.folder}/"
        super().__init__(f"{folder}{{job_id}}", self._answer, methods=["GET"], include_in_schema=False)
        self._id = re.compile(re.escape(folder) + f"({ids.pattern(resource.kind.prefix)[1:-1]})")
        self._resource = resource
        self._deps = deps

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """All but a GET of what can be an id is left to the routes that follow."""
        if scope["type"] != "http" or scope["method"] != "GET":
            return Match.NONE, {}
        found = self._id.fullmatch(scope["path"])
        return (Match.FULL, {"route": self, "path_params": {"job_id": found[1]}}) if found else (Match.NONE, {})

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Errors are left to the application, as those of other routes are."""
        await (await self._answer(Request(scope, receive)))(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        return await _get(self._resource, self._deps, callers.get_caller(request), request)


async def accepted(
    request: Request,
    deps: Dependencies,
    resource: JobResource[Any],
    model: type[Model],
    read: Callable[[AsyncIterator[Part], Uploads, Settings], Awaitable[Model]],
    files: int,
    create: Callable[[Dependencies, Model], Job],
) -> Response:
    """Make a job of what a request asks for; the answer says where to look and when. What it uploaded goes if it fails.

    A request is JSON, as `model` says, or a form of at most so many files, of which `read` makes what JSON would be.
    """
    async with receive_uploads(deps) as uploads:
        if bodies.media_type(request) == "multipart/form-data":
            async with aclosing(multipart.parts(request, deps.settings, files)) as form:
                sent = await read(form, uploads, deps.settings)
        else:
            sent = validate(model, await bodies.read_json(request, deps.settings))
        answer = await run_in_threadpool(lambda: resource.to_answer(deps, create(deps, sent)))
    headers = {"Location": f"/v1/{resource.kind.folder}/{answer.id}"} | _polling(deps, answer.status)
    return Response(answer.model_dump_json(), 202, media_type="application/json", headers=headers)


def add_job_routes(router: APIRouter, resource: JobResource[Answer]) -> None:
    """Add them to the router of a kind of job."""
    name = resource.kind.name

    def newest(
        deps: InjectedDependencies,
        status: Annotated[Status | None, Query(description="only those in this state")] = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        cursor: Annotated[str | None, Query(max_length=64, description="`next_cursor` of the page before")] = None,
    ) -> Page[Answer]:
        answers, following = resource.page(deps, status, limit, cursor)
        return Page[resource.answer](data=answers, next_cursor=following, has_more=following is not None)

    async def get(
        job_id: str,
        request: Request,
        deps: InjectedDependencies,
        prefer: Annotated[str, Header(description="`wait=SECONDS`, at most 60")] = "",
    ) -> Response:
        return await _get(resource, deps, deps.caller, request)

    async def events(job_id: str, request: Request, deps: InjectedDependencies) -> Response:
        job = await run_in_threadpool(resource.get, deps, job_id)
        return event_stream.stream_events(request, deps, job, resource.to_answer)

    def cancel(job_id: str, response: Response, deps: InjectedDependencies) -> Answer:
        answer = resource.to_answer(deps, deps.jobs.cancel(resource.get(deps, job_id).id))
        response.headers.update(_polling(deps, answer.status))
        return answer

    def delete(job_id: str, deps: InjectedDependencies) -> None:
        resource.delete(deps, job_id)

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
        responses=problems(404, 503) | event_stream.DESCRIPTION,
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


async def _get(resource: JobResource[Any], deps: Dependencies, caller: Caller, request: Request) -> Response:
    job_id = request.path_params["job_id"]
    conditional = "if-none-match" in request.headers

    async def look() -> tuple[PollResponse, int, bool]:
        told = await resource.poll(deps, caller, request.scope, job_id)
        is_news = told.job.finished or (conditional and not matches_etag(request, told.etag))
        return told, told.job.revision, is_news

    wait = long_poll.requested_wait(",".join(request.headers.getlist("prefer")), deps.settings)
    told = await long_poll.wait_for_change(request, deps.event_feed, job_id, wait, look)
    headers = _polling(deps, told.job.status) | {"ETag": told.etag, "Cache-Control": "private, no-cache"}
    if wait:
        headers["Preference-Applied"] = f"wait={wait}"
    if matches_etag(request, told.etag):
        return Response(status_code=304, headers=headers)
    return Response(told.body, media_type="application/json", headers=headers)


def _polling(deps: Dependencies, status: Status) -> dict[str, str]:
    return {} if status in TERMINAL else {"Retry-After": str(deps.settings.poll_seconds)}
