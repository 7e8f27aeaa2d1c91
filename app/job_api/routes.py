"""The calls that jobs of every kind answer: the list, the job by polls long and short, its events, cancel, delete."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from app.audio.service import Uploads, received
from app.dependencies import Parts, UsesParts
from app.http import bodies, multipart
from app.http.conditional import has_already
from app.http.multipart import Part
from app.http.openapi import problems
from app.http.validation import Model, validated
from app.job_api import event_stream, long_poll
from app.job_api.resource import Resource
from app.job_api.schemas import Answer, Page
from app.jobs.lifecycle import OVER, Job, Status
from app.jobs.poll_cache import Told
from app.keys import callers
from app.keys.callers import Caller
from app.records import ids
from app.settings import Settings


class Poll(Route):
    """The short way to what `get` below answers, for whatever can be an id: to be tried before all other routes.

    Polls are most of all requests, and FastAPI's routing and dependencies cost several times what their answer does.
    """

    def __init__(self, resource: Resource[Any], parts: Parts) -> None:
        folder = f"/v1/{resource.kind.folder}/"
        super().__init__(f"{folder}{{job_id}}", self._answer, methods=["GET"], include_in_schema=False)
        self._id = re.compile(re.escape(folder) + f"({ids.pattern(resource.kind.prefix)[1:-1]})")
        self._resource = resource
        self._parts = parts

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
        return await _get(self._resource, self._parts, callers.of(request), request)


async def accepted(
    request: Request,
    parts: Parts,
    resource: Resource[Any],
    model: type[Model],
    read: Callable[[AsyncIterator[Part], Uploads, Settings], Awaitable[Model]],
    files: int,
    create: Callable[[Parts, Model], Job],
) -> Response:
    """Make a job of what a request asks for; the answer says where to look and when. What it uploaded goes if it fails.

    A request is JSON, as `model` says, or a form of at most so many files, of which `read` makes what JSON would be.
    """
    async with received(parts) as uploads:
        if bodies.media_type(request) == "multipart/form-data":
            async with aclosing(multipart.parts(request, parts.settings, files)) as form:
                sent = await read(form, uploads, parts.settings)
        else:
            sent = validated(model, await bodies.read_json(request, parts.settings))
        answer = await run_in_threadpool(lambda: resource.tell(parts, create(parts, sent)))
    headers = {"Location": f"/v1/{resource.kind.folder}/{answer.id}"} | _polling(parts, answer.status)
    return Response(answer.model_dump_json(), 202, media_type="application/json", headers=headers)


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
        parts: UsesParts,
        prefer: Annotated[str, Header(description="`wait=SECONDS`, at most 60")] = "",
    ) -> Response:
        return await _get(resource, parts, parts.caller, request)

    async def events(job_id: str, request: Request, parts: UsesParts) -> Response:
        job = await run_in_threadpool(resource.find, parts, job_id)
        return event_stream.stream(request, parts, job, resource.tell)

    def cancel(job_id: str, response: Response, parts: UsesParts) -> Answer:
        answer = resource.tell(parts, parts.jobs.cancel(resource.find(parts, job_id).id))
        response.headers.update(_polling(parts, answer.status))
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


async def _get(resource: Resource[Any], parts: Parts, caller: Caller, request: Request) -> Response:
    job_id = request.path_params["job_id"]
    conditional = "if-none-match" in request.headers

    async def look() -> tuple[Told, int, bool]:
        told = await resource.poll(parts, caller, request.scope, job_id)
        is_news = told.job.over or (conditional and not has_already(request, told.etag))
        return told, told.job.revision, is_news

    wait = long_poll.preferred(",".join(request.headers.getlist("prefer")), parts.settings)
    told = await long_poll.until_news(request, parts.feed, job_id, wait, look)
    headers = _polling(parts, told.job.status) | {"ETag": told.etag, "Cache-Control": "private, no-cache"}
    if wait:
        headers["Preference-Applied"] = f"wait={wait}"
    if has_already(request, told.etag):
        return Response(status_code=304, headers=headers)
    return Response(told.body, media_type="application/json", headers=headers)


def _polling(parts: Parts, status: Status) -> dict[str, str]:
    return {} if status in OVER else {"Retry-After": str(parts.settings.poll_seconds)}
