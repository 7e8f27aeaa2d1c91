"""Server-sent events of a job: https://html.spec.whatwg.org/multipage/server-sent-events.html

One stream for every kind of job: `state`, `progress` and `target` events whose ids are the record's revisions and
whose data is the job as a poll would have told it. All events are replayed, or those after `Last-Event-ID`; the stream
closes after the last one.
"""

from collections.abc import AsyncIterator, Callable

from fastapi import Request, Response
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from pydantic import BaseModel
from redis.exceptions import RedisError
from starlette.concurrency import run_in_threadpool

from app.dependencies import Dependencies
from app.errors import NotFound
from app.jobs import events
from app.jobs.events import DELETED, EventEntry, RecordReplay
from app.jobs.lifecycle import Job

HEARTBEAT_SECONDS = 15.0  # without an event; proxies close what is silent for a minute
_RETRY_MS = 1000  # after which browsers connect again when a stream breaks off
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}

DESCRIPTION = {
    204: {"description": "There is nothing after `Last-Event-ID`, and the job is over: do not connect again"},
    200: {
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
        "description": "`state`, `progress`, `target`",
    },
}


def stream_events(
    request: Request, deps: Dependencies, job: Job, tell: Callable[[Dependencies, Job], BaseModel]
) -> Response:
    """The answer to a request for a job's events; `tell` makes of a record what polls are told."""
    after = _last_seen(request, job)
    if job.finished and after == job.revision:
        return Response(status_code=204)
    return EventSourceResponse(_events(deps, job, after, tell), headers=_HEADERS)


def _last_seen(request: Request, job: Job) -> int:
    """The revision after which events are wanted; 0, for all, where the header names none of this job's."""
    sent = request.headers.get("last-event-id", "")
    seen = int(sent) if sent.isascii() and sent.isdigit() and len(sent) < 19 else 0
    return seen if seen <= job.revision else 0


async def _events(
    deps: Dependencies, job: Job, after: int, tell: Callable[[Dependencies, Job], BaseModel]
) -> AsyncIterator[bytes]:
    unfolding = RecordReplay(job)
    over = False

    def told(entries: list[EventEntry]) -> bytes:
        nonlocal over
        chunks = []
        for entry in entries:
            if entry.type == DELETED:
                over = True
                break
            record = unfolding.apply(entry)
            over = record.finished
            if entry.revision > after:
                data = tell(deps, record).model_dump_json()
                chunks.append(format_sse_event(data_str=data, event=entry.type, id=str(entry.revision)))
        return b"".join(chunks)

    with deps.event_feed.subscribe(job.id) as follower:
        entries = await run_in_threadpool(events.read_all, deps.redis, job.id)
        follower.start(entries[-1].revision if entries else job.revision)
        yield format_sse_event(retry=_RETRY_MS) + await run_in_threadpool(told, entries)
        while not over and not deps.event_feed.ended:
            entries = await follower.next(HEARTBEAT_SECONDS)
            if entries:
                yield await run_in_threadpool(told, entries)
            elif not deps.event_feed.ended:
                yield KEEPALIVE_COMMENT
                over = await run_in_threadpool(_is_over, deps, job)


def _is_over(deps: Dependencies, job: Job) -> bool:
    """Whether the job has ended, or its record gone, though no event told so: a server that was started anew may have
    lost the latest ones, and then numbers again those that follow. Where Redis does not answer, it may go on."""
    try:
        return deps.jobs.get(job.id).finished
    except NotFound:
        return True
    except RedisError:
        return False
