"""Long polls: `Prefer: wait=SECONDS` (RFC 7240) holds an answer back until there is news."""

import asyncio
import re
import time
from collections.abc import Callable
from typing import TypeVar

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from app.settings import Settings

_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,9})\"?\s*(?:$|[,;])", re.IGNORECASE)
_LOOK_SECONDS = 0.25  # between two looks: what waiting may add to an answer, and what a waiter costs the queue's server

Found = TypeVar("Found")


def preferred(prefer: str, settings: Settings) -> int:
    """Whole seconds that the header `Prefer` asks to wait, at most `longest_wait`; 0 where it does not."""
    match = _WAIT.search(prefer)
    return min(int(match[1]), settings.longest_wait) if match else 0


async def until_news(request: Request, seconds: float, look: Callable[[], tuple[Found, bool]]) -> Found:
    """What `look` found (it also says whether that is news), now or as soon as there is news within so many seconds.

    Looks happen in threads, one at a time; nobody's thread is held between two. Ends early when the client hangs up.
    """
    end = time.monotonic() + seconds
    while True:
        found, is_news = await run_in_threadpool(look)
        left = end - time.monotonic()
        if is_news or left <= 0 or await request.is_disconnected():
            return found
        await asyncio.sleep(min(_LOOK_SECONDS, left))
