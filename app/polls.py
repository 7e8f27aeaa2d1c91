"""What polls are told: read on the event loop, and rendered once for as long as the record stays as it is.

Clients ask much more often than there is news. A record's bytes, its place in the line and the period of signed
addresses make the answer; while they are the same, so is the answer, and it is neither parsed nor rendered again.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from redis.asyncio import Redis

from app import lifecycle
from app.batches import Batches
from app.errors import NotFound
from app.lifecycle import Job
from app.line import waiting_key
from app.listing import record_key

_KEPT_BYTES = 8 << 20  # of records; what is made of them takes several times as much

Render = Callable[[Job, int], tuple[bytes, str]]  # of a record and its place in the line, the answer and its ETag


@dataclass(frozen=True)
class Told:
    """A record, and the answer that was made of it; `until` when, in seconds since 1970, it may be given."""

    document: bytes
    position: int
    until: float
    job: Job
    body: bytes
    etag: str


class Polls:
    """The answers of one process; used from its event loop only."""

    def __init__(self, redis: Redis) -> None:
        self._script = Batches(redis, Path(__file__).with_suffix(".lua"))
        self._known: OrderedDict[str, Told] = OrderedDict()  # the longest not asked for first
        self._bytes = 0

    async def told(self, job_id: str, until: float, render: Render) -> Told:
        """The record as it stands, and its answer. Raises `NotFound`, `RecordTooNew`, and redis-py's errors.

        until: when signed addresses change next.
        """
        known = self._known.get(job_id)
        document, rank = await self._look(job_id, known.job if known is not None else None)
        if document is None:
            self._forget(job_id)
            raise NotFound("There is no such job.")
        job = known.job if known is not None and known.document == document else lifecycle.read(document)
        if job.status == "queued" and known is None:  # only its record tells in which line it waits
            _, rank = await self._look(job_id, job)
        position = 0 if rank is None else rank + 1
        if known is not None and (known.document, known.position, known.until) == (document, position, until):
            self._known.move_to_end(job_id)
            return known
        told = Told(document, position, until, job, *render(job, position))
        self._keep(told)
        return told

    async def _look(self, job_id: str, known: Job | None) -> tuple[bytes | None, int | None]:
        line = waiting_key(known.model) if known is not None else ""
        document, rank = await self._script.run([record_key(job_id), line], [job_id])
        return document, rank

    def _keep(self, told: Told) -> None:
        self._forget(told.job.id)
        self._known[told.job.id] = told
        self._bytes += len(told.document)
        while self._bytes > _KEPT_BYTES:
            self._forget(next(iter(self._known)))

    def _forget(self, job_id: str) -> None:
        if (told := self._known.pop(job_id, None)) is not None:
            self._bytes -= len(told.document)
