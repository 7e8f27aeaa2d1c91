"""Server-sent events of a job: https://html.spec.whatwg.org/multipage/server-sent-events.html

One stream for every kind of job: `state`, `progress` and `target` events. The id of an event is the record's revision,
its data is the job as a poll would have returned it. All events are replayed, or those after `Last-Event-ID`; the
stream closes after the last one. While the store does not return the large fields of an event, the stream waits.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
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
    replay = RecordReplay(job)
    finished = False

    def replay_entries(entries: list[EventEntry]) -> list[tuple[EventEntry, Job]]:
        nonlocal finished
        replayed = []
        for entry in entries:
            if entry.type == DELETED:
                finished = True
                break
            record = replay.apply(entry)
            finished = record.is_finished
            if entry.revision > after:
                replayed.append((entry, record))
        return replayed

    def format_events(replayed: list[tuple[EventEntry, Job]]) -> bytes:
        chunks = []
        for entry, record in replayed:
            data = render(deps, record).model_dump_json()
            chunks.append(format_sse_event(data_str=data, event=entry.type, id=str(entry.revision)))
        return b"".join(chunks)

    async def format_entries(entries: list[EventEntry]) -> AsyncIterator[bytes]:
        nonlocal finished
        replayed = await run_in_threadpool(replay_entries, entries)
        while replayed and not deps.event_feed.ended:
            try:
                complete = [(entry, await deps.large_fields_cache.load(record)) for entry, record in replayed]
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
                yield await run_in_threadpool(format_events, complete)
                return

    with deps.event_feed.subscribe(job.id) as subscription:
        entries = await run_in_threadpool(events.read_all, deps.redis, job.id)
        subscription.start(entries[-1].revision if entries else job.revision)
        yield format_sse_event(retry=_RETRY_MS)
        async for chunk in format_entries(entries):
            yield chunk
        while not finished and not deps.event_feed.ended:
            entries = await subscription.next(HEARTBEAT_SECONDS)
            if entries:
                async for chunk in format_entries(entries):
                    yield chunk
            elif not deps.event_feed.ended:
                yield KEEPALIVE_COMMENT
                finished = await run_in_threadpool(_has_finished, deps, job)


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
