"""Server-sent events of a job: https://html.spec.whatwg.org/multipage/server-sent-events.html

One stream for every kind of job: `state`, `progress` and `target` events. The id of an event is the record's revision,
its data is the job as a poll would have returned it. All events are replayed, or those after `Last-Event-ID`; the
stream closes after the last one. While the store does not return the large fields of an event, the stream waits.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager

from fastapi import Request, Response
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from pydantic import BaseModel
from redis.exceptions import RedisError
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from app.dependencies import Dependencies
from app.errors import NotFound, RecordUnreadable, StoreUnavailable
from app.jobs import events
from app.jobs.events import DELETED, EventEntry, RecordReplay
from app.jobs.lifecycle import Job

log = logging.getLogger("earmark.events")

HEARTBEAT_SECONDS = 15.0  # between comments while there is no event; proxies close what is silent for a minute
_STORE_RETRY_SECONDS = 1.0  # between two attempts while the store does not answer
_RETRY_MS = 1000  # after which browsers reconnect
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}

DESCRIPTION = {
    204: {"description": "No event follows `Last-Event-ID` and the job has finished: do not reconnect"},
    200: {
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
        "description": "`state`, `progress`, `target`",
    },
}

Render = Callable[[Dependencies, Job], BaseModel]


class EventStreamResponse(EventSourceResponse):
    """Response that holds a part of a budget for as long as it is sent, and is an error if none is left."""

    def __init__(self, content: AsyncIterator[bytes], hold: AbstractAsyncContextManager[object]) -> None:
        super().__init__(content, headers=_HEADERS)
        self._hold = hold

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._hold:
            await super().__call__(scope, receive, send)


def stream_events(request: Request, deps: Dependencies, job: Job, render: Render) -> Response:
    """Return the response to a request for a job's events; `render` makes the representation that polls return.

    job: complete, as the request found it.
    """
    after = _last_event_id(request, job)
    if job.is_finished and after == job.revision:
        return Response(status_code=204)
    return EventStreamResponse(_events(deps, job, after, render), deps.budgets.streams.hold(deps.caller.key_id))


def _last_event_id(request: Request, job: Job) -> int:
    """Return the revision after which events are wanted; 0, for all, if the header names no revision of this job."""
    header = request.headers.get("last-event-id", "")
    revision = int(header) if header.isascii() and header.isdigit() and len(header) < 19 else 0
    return revision if revision <= job.revision else 0


async def _events(deps: Dependencies, job: Job, after: int, render: Render) -> AsyncIterator[bytes]:
    feed = deps.event_feed
    record, finished = job, False

    async def send(make: Callable[[Job], Awaitable[tuple[Job, bytes]]]) -> AsyncIterator[bytes]:
        """Yield what `make` returns for the last record, with the next one; keep-alive comments until it can."""
        nonlocal record, finished
        while not feed.ended:
            try:
                record, chunk = await make(record)
            except StoreUnavailable:
                yield KEEPALIVE_COMMENT
                await asyncio.sleep(_STORE_RETRY_SECONDS)
            except NotFound:  # deleted meanwhile; a further entry says so
                return
            except RecordUnreadable as error:  # the client's next poll answers with it
                log.error("the events of %s end: %s", job.id, error)
                finished = True
                return
            else:
                finished = record.is_finished
                if chunk:
                    yield chunk
                return

    def format_shared(entry: EventEntry) -> Callable[[Job], Awaitable[tuple[Job, bytes]]]:
        return lambda record: feed.share(entry, lambda: _format(deps, record, [entry], 0, render))

    def format_past(past: list[EventEntry]) -> Callable[[Job], Awaitable[tuple[Job, bytes]]]:
        # Not kept for later streams: places in the queue and signatures of URLs change by themselves.
        what = (job.id, after, past[-1].revision if past else 0)
        return lambda record: feed.join(what, lambda: _format(deps, record, past, after, render))

    with feed.subscribe(job.id) as subscription:
        past = await run_in_threadpool(events.read_all, deps.redis, job.id)
        subscription.start(past[-1].revision if past else job.revision)
        yield format_sse_event(retry=_RETRY_MS)
        if past and past[-1].type == DELETED:
            return
        async for chunk in send(format_past(past)):
            yield chunk
        while not finished and not feed.ended:
            entries = await subscription.next(HEARTBEAT_SECONDS)
            for entry in entries:
                if finished or entry.type == DELETED:
                    return
                async for chunk in send(format_shared(entry)):
                    yield chunk
            if not entries and not feed.ended:
                yield KEEPALIVE_COMMENT
                finished = await feed.join(job.id, lambda: run_in_threadpool(_has_finished, deps, job))


async def _format(
    deps: Dependencies, record: Job, entries: list[EventEntry], after: int, render: Render
) -> tuple[Job, bytes]:
    """Return the record after these entries, without its large fields, and the events above the revision `after`.

    Raises `StoreUnavailable`, `NotFound`, `RecordUnreadable`.
    """

    def replay() -> list[tuple[EventEntry, Job]]:
        replay = RecordReplay(record)
        return [(entry, replay.apply(entry)) for entry in entries]

    def format_events(complete: list[tuple[EventEntry, Job]]) -> bytes:
        return b"".join(
            format_sse_event(data_str=render(deps, job).model_dump_json(), event=entry.type, id=str(entry.revision))
            for entry, job in complete
        )

    replayed = await run_in_threadpool(replay)
    wanted = [(entry, job) for entry, job in replayed if entry.revision > after]
    complete = [(entry, await deps.large_fields_cache.load(job)) for entry, job in wanted]
    return replayed[-1][1] if replayed else record, await run_in_threadpool(format_events, complete)


def _has_finished(deps: Dependencies, job: Job) -> bool:
    """Whether the job has finished or was deleted without an event of it.

    A restarted server may have lost the latest events and reuses their numbers. While Redis does not answer, the job is
    taken as running.
    """
    try:
        return deps.jobs.get(job.id).is_finished
    except (NotFound, RecordUnreadable):
        return True
    except RedisError:
        return False
