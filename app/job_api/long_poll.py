"""Long polls: `Prefer: wait=SECONDS` (RFC 7240) delays a response until the job changes."""

import re
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

from fastapi import Request

from app.jobs.event_feed import EventFeed
from app.jobs.events import PROGRESS
from app.settings import Settings

_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,9})\"?\s*(?:$|[,;])", re.IGNORECASE)
_DISCONNECT_CHECK_SECONDS = 1.0

Found = TypeVar("Found")


def parse_wait(prefer: str, settings: Settings) -> int:
    """Return the whole seconds that a `Prefer` header asks to wait, at most `longest_wait`; 0 if it does not ask."""
    match = _WAIT.search(prefer)
    return min(int(match[1]), settings.longest_wait) if match else 0


async def wait_for_change(
    request: Request,
    feed: EventFeed,
    hold: AbstractAsyncContextManager[object],
    job_id: str,
    seconds: float,
    look: Callable[[], Awaitable[tuple[Found, int, bool]]],
) -> Found:
    """Return what `look` found as soon as that is news, or after so many seconds.

    hold: what is held of a budget during the wait; its errors are raised. look: returns what it found, the job's
    revision that it saw, and whether that is news; it is called again when the job has changed, but for changes of its
    progress alone, which are no news, only at the end of the wait. The wait ends early when the client disconnects or
    the server stops.
    """
    if seconds <= 0:
        return (await look())[0]
    deadline = time.monotonic() + seconds
    with feed.subscribe(job_id) as subscription:
        found, revision, is_news = await look()
        if is_news:
            return found
        async with hold:
            while not is_news:
                subscription.start(revision)
                has_progressed = False
                while True:
                    seconds = min(_DISCONNECT_CHECK_SECONDS, max(0.0, deadline - time.monotonic()))
                    entries = await subscription.next(seconds)
                    if any(entry.type != PROGRESS for entry in entries):
                        break
                    has_progressed |= bool(entries)
                    if time.monotonic() >= deadline:
                        return (await look())[0] if has_progressed else found
                    if feed.ended or (not entries and await request.is_disconnected()):
                        return found
                found, revision, is_news = await look()
            return found
