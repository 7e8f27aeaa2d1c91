"""Cache of records' large fields, for the event loop of one process.

Objects never change: their keys hold the execution that wrote them. Concurrent reads of one object are one read.
"""

import asyncio
from collections import OrderedDict

from starlette.concurrency import run_in_threadpool

from app.errors import NotFound, StoreUnavailable
from app.jobs.large_fields import LargeFields
from app.jobs.lifecycle import Job
from app.settings import Settings
from app.storage import Storage

_CONCURRENT_READS = 16  # of the store; as many objects are in memory besides the cache


class LargeFieldsCache:
    """Loads large fields and keeps those that were used last. max_bytes: of their JSON."""

    def __init__(
        self, large_fields: LargeFields, storage: Storage, settings: Settings, max_bytes: int = 16 << 20
    ) -> None:
        self._large_fields = large_fields
        self._storage = storage
        self._timeout = settings.store_timeout
        self._max_bytes = max_bytes
        self._bytes = 0
        self._contents: OrderedDict[str, bytes] = OrderedDict()  # by key, the least recently used first
        self._reads: dict[str, asyncio.Task[bytes]] = {}
        self._slots = asyncio.Semaphore(_CONCURRENT_READS)

    async def load(self, job: Job) -> Job:
        """Return the complete job. Raises `StoreUnavailable`, and `NotFound` if it was deleted meanwhile."""
        if not job.is_partial:
            return job
        try:
            contents = [await self._content(stored.key) for stored in job.stored_fields]
        except NotFound as error:
            raise await run_in_threadpool(self._large_fields.explain_missing, job) from error
        return await run_in_threadpool(self._large_fields.fill, job, contents)

    async def _content(self, key: str) -> bytes:
        content = self._contents.get(key)
        if content is not None:
            self._contents.move_to_end(key)
            return content
        read = self._reads.get(key)
        if read is None:
            read = self._reads[key] = asyncio.create_task(self._read(key))
            read.add_done_callback(lambda done: done.cancelled() or done.exception())  # its callers may have left
        return await asyncio.shield(read)

    async def _read(self, key: str) -> bytes:
        try:
            async with asyncio.timeout(self._timeout), self._slots:
                content = await self._storage.read(key)
        except TimeoutError as error:
            raise StoreUnavailable() from error
        finally:
            del self._reads[key]
        self._contents[key] = content
        self._bytes += len(content)
        while self._bytes > self._max_bytes:
            self._bytes -= len(self._contents.popitem(last=False)[1])
        return content
