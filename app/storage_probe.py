"""Readiness of the object store: the outcome of its last check, for health checks that must answer at once."""

import asyncio
import logging
import math
import time

from anyio import CapacityLimiter
from anyio.to_thread import run_sync

from app.errors import StoreUnavailable
from app.storage import Storage

log = logging.getLogger("earmark.storage")


class StorageProbe:
    """Whether the store responds, as its last check showed; for code on one event loop.

    One check runs at a time, in a thread of its own, and may take as long as the store lets it: only a check that fails
    says that the store is away. A slow store is not, nor one whose first check is still running. Each check lists; the
    first one, some of the later ones and those after a failure write too.

    wait_seconds: the longest that a call waits for the running check. keep_seconds: how long an outcome is kept before
    the store is checked again. stale_seconds: its age above which a call waits for the next one. write_seconds: between
    two checks that write, which S3 servers charge for.
    """

    def __init__(
        self,
        storage: Storage,
        wait_seconds: float = 1.5,
        keep_seconds: float = 3.0,
        stale_seconds: float = 15.0,
        write_seconds: float = 60.0,
    ) -> None:
        self._storage = storage
        self._wait_seconds = wait_seconds
        self._keep_seconds = keep_seconds
        self._stale_seconds = stale_seconds
        self._write_seconds = write_seconds
        self._thread = CapacityLimiter(1)
        self._running: asyncio.Task[None] | None = None
        self._error: StoreUnavailable | None = None
        self._checked_at = -math.inf
        self._written_at = -math.inf

    async def check(self) -> None:
        """Raise `StoreUnavailable` if the last finished check failed."""
        age = time.monotonic() - self._checked_at
        if self._running is None and age >= self._keep_seconds:
            self._running = asyncio.create_task(self._run())
        if self._running is not None and age >= self._stale_seconds:
            await asyncio.wait([self._running], timeout=self._wait_seconds)
        if self._error is not None:
            raise StoreUnavailable(self._error.detail)

    async def _run(self) -> None:
        writes = self._error is not None or time.monotonic() - self._written_at >= self._write_seconds
        try:
            await run_sync(self._storage.check, writes, limiter=self._thread, abandon_on_cancel=True)
            self._error = None
            if writes:
                self._written_at = time.monotonic()
        except StoreUnavailable as error:
            self._error = error
        except Exception:
            log.exception("the store cannot be checked")
            self._error = StoreUnavailable()
        finally:
            self._checked_at = time.monotonic()
            self._running = None
