"""Long polls: `Prefer: wait=SECONDS` (RFC 7240) holds an answer back until there is news."""

import re
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from fastapi import Request

from app.jobs.event_feed import EventFeed
from app.settings import Settings

_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,9})\"?\s*(?:$|[,;])", re.IGNORECASE)
_ASK_SECONDS = 1.0  # between two looks whether the client is still there

Found = TypeVar("Found")


def requested_wait(prefer: str, settings: Settings) -> int:
    """Whole seconds that the header `Prefer` asks to wait, at most `longest_wait`; 0 where it does not."""
    match = _WAIT.search(prefer)
    return min(int(match[1]), settings.longest_wait) if match else 0


async def wait_for_change(
    request: Request,
    feed: EventFeed,
    job_id: str,
    seconds: float,
    look: Callable[[], Awaitable[tuple[Found, int, bool]]],
) -> Found:
    """What `look` found, now or as soon as there is news within so many seconds.

    `look` also says which revision of the job it saw, and whether that is news; it is called again when the job
    has changed. Ends early when the client hangs up or the server stops.
    """
    if seconds <= 0:
        return (await look())[0]
    end = time.monotonic() + seconds
    with feed.subscribe(job_id) as follower:
        while True:
            found, revision, is_news = await look()
            if is_news:
                return found
            follower.start(revision)
            while not await follower.next(min(_ASK_SECONDS, max(0.0, end - time.monotonic()))):
                if feed.ended or time.monotonic() >= end or await request.is_disconnected():
                    return found
