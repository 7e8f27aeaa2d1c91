"""What polls are told: read on the event loop, and rendered once for as long as the record stays as it is.

Clients ask much more often than there is news. A record's bytes, its place in the line and the period of signed
addresses make the answer; while they are the same, so is the answer, and it is neither parsed nor rendered again.
"""

import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from starlette.types import Scope

from app.errors import NotFound
from app.jobs import lifecycle
from app.jobs.fair_queue import waiting_key
from app.jobs.kinds import KINDS
from app.jobs.lifecycle import Job
from app.jobs.listing import record_key
from app.redis_client import CoalescedScript

_KEPT_BYTES = 8 << 20  # of records; what is made of them takes several times as much
_POLL = re.compile(f"/v1/[a-z]+/((?:{'|'.join(kind.prefix for kind in KINDS.values())})_[0-9A-Z]{{26}})")
_PREFETCHED = "earmark.looked"

Render = Callable[[Job, int], tuple[bytes, str]]  # of a record and its place in the line, the answer and its ETag


@dataclass(frozen=True)
class PollResponse:
    """A record, and the answer that was made of it; `until` when, in seconds since 1970, it may be given."""

    document: bytes
    position: int
    until: float
    job: Job
    body: bytes
    etag: str


class PollCache:
    """The answers of one process; used from its event loop only."""

    def __init__(self, redis: Redis) -> None:
        self._script = CoalescedScript(redis, Path(__file__).with_suffix(".lua"))
        self._known: OrderedDict[str, PollResponse] = OrderedDict()  # the longest not asked for first
        self._bytes = 0

    def prefetch_keys(self, scope: Scope) -> tuple[str, list[str]]:
        """For a poll the job's id and what it will look at, else as much of nothing. Whoever asks Redis anyway before
        the poll's turn comes may look for it, and tell `looked`: one question is cheaper than two."""
        found = _POLL.fullmatch(scope["path"]) if scope["method"] == "GET" else None
        return (found[1], self._keys(found[1], self._job(found[1]))) if found else ("", ["", ""])

    def store_prefetched(self, scope: Scope, keys: list[str], found: list[Any]) -> None:
        """What `keys` held a moment ago; for one look alone."""
        scope[_PREFETCHED] = (keys, found)

    async def get(self, scope: Scope, job_id: str, until: float, render: Render) -> PollResponse:
        """The record as it stands, and its answer. Raises `NotFound`, `RecordTooNew`, and redis-py's errors.

        until: when signed addresses change next.
        """
        known = self._known.get(job_id)
        keys = self._keys(job_id, self._job(job_id))
        looked, found = scope.pop(_PREFETCHED, (None, None))
        document, rank = found if looked == keys else await self._script.run(keys, [job_id])
        if document is None:
            self._forget(job_id)
            raise NotFound("There is no such job.")
        job = known.job if known is not None and known.document == document else lifecycle.parse(document)
        if job.status == "queued" and known is None:  # only its record tells in which line it waits
            _, rank = await self._script.run(self._keys(job_id, job), [job_id])
        position = 0 if rank is None else rank + 1
        if known is not None and (known.document, known.position, known.until) == (document, position, until):
            self._known.move_to_end(job_id)
            return known
        told = PollResponse(document, position, until, job, *render(job, position))
        self._keep(told)
        return told

    def _job(self, job_id: str) -> Job | None:
        known = self._known.get(job_id)
        return None if known is None else known.job

    @staticmethod
    def _keys(job_id: str, known: Job | None) -> list[str]:
        return [record_key(job_id), "" if known is None else waiting_key(known.model)]

    def _keep(self, told: PollResponse) -> None:
        self._forget(told.job.id)
        self._known[told.job.id] = told
        self._bytes += len(told.document)
        while self._bytes > _KEPT_BYTES:
            self._forget(next(iter(self._known)))

    def _forget(self, job_id: str) -> None:
        if (told := self._known.pop(job_id, None)) is not None:
            self._bytes -= len(told.document)
