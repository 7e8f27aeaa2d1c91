"""Cache of rendered poll responses, filled on the event loop.

Clients poll far more often than jobs change. A response follows from the record's bytes, the position in the fair queue
and what signs the URLs in it; while these stay the same it is neither parsed nor rendered again.
"""

import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from starlette.types import Scope

from app.errors import NotFound
from app.jobs import lifecycle
from app.jobs.fair_queue import waiting_key
from app.jobs.kinds import KINDS, Kind
from app.jobs.lifecycle import Job
from app.jobs.listing import record_key
from app.records import ids
from app.redis_client import CoalescedScript

_KINDS = tuple(KINDS.values())
_POLL = re.compile("|".join(f"/v1/{kind.folder}/({ids.pattern(kind.prefix)[1:-1]})" for kind in _KINDS))
_POLLED = "earmark.polled"
_PREFETCHED = "earmark.prefetched"

# From a record, whose large fields are not loaded, and its position to the response's body and ETag.
Render = Callable[[Job, int], Awaitable[tuple[bytes, str]]]


def parse_poll(scope: Scope) -> tuple[Kind, str] | None:
    """Return the kind and the id of the job that a request polls; None for other requests. Parsed once a request."""
    if _POLLED not in scope:
        match = _POLL.fullmatch(scope["path"]) if scope["method"] == "GET" else None
        number = match.lastindex if match else None
        scope[_POLLED] = (_KINDS[number - 1], match[number]) if match and number else None
    return scope[_POLLED]


@dataclass(frozen=True)
class PollResponse:
    """A record, without its large fields, and the response, with URLs of this edition (`UrlSigner.edition`)."""

    document: bytes
    position: int
    edition: object
    job: Job
    body: bytes
    etag: str

    @property
    def bytes(self) -> int:
        """The size of the record and the response."""
        return len(self.document) + len(self.body)


class PollCache:
    """The responses of one process; for use from its event loop only.

    max_bytes: of cached records and responses. The least recently polled are dropped first.
    """

    def __init__(self, redis: Redis, max_bytes: int = 16 << 20) -> None:
        self._script = CoalescedScript(redis, Path(__file__).with_suffix(".lua"))
        self._responses: OrderedDict[str, PollResponse] = OrderedDict()  # the least recently polled first
        self._max_bytes = max_bytes
        self._bytes = 0

    def prefetch_keys(self, scope: Scope) -> tuple[str, list[str]]:
        """Return the job's id and the keys that `get` will read for a request that polls; empty ones for any other.

        A caller that has a call to Redis to make before may read them with it, and pass the reply to
        `keep_prefetch`: one round trip is cheaper than two.
        """
        polled = parse_poll(scope)
        return ("", ["", ""]) if polled is None else (polled[1], self._keys(polled[1], self._job_of(polled[1])))

    def keep_prefetch(self, scope: Scope, keys: list[str], reply: list[Any]) -> None:
        """Keep the values of `keys` for the next call of `get` for this request."""
        scope[_PREFETCHED] = (keys, reply)

    async def get(self, scope: Scope, job_id: str, edition: object, render: Render) -> PollResponse:
        """Return the current record and its response.

        Raises `NotFound`, `RecordTooNew`, redis-py's errors, and what `render` raises.

        edition: of the signed URLs in the response.
        """
        cached = self._responses.get(job_id)
        keys = self._keys(job_id, self._job_of(job_id))
        prefetched_keys, reply = scope.pop(_PREFETCHED, (None, None))
        document, rank = reply if prefetched_keys == keys else await self._script.run(keys, [job_id])
        if document is None:
            self._drop(job_id)
            raise NotFound("There is no such job.")
        job = cached.job if cached is not None and cached.document == document else lifecycle.parse(document)
        if job.status == "queued" and cached is None:  # its model, and so its fair queue, was not known before
            _, rank = await self._script.run(self._keys(job_id, job), [job_id])
        position = 0 if rank is None else rank + 1
        if cached is not None and (cached.document, cached.position, cached.edition) == (document, position, edition):
            self._responses.move_to_end(job_id)
            return cached
        response = PollResponse(document, position, edition, job, *await render(job, position))
        self._add(response)
        return response

    def _job_of(self, job_id: str) -> Job | None:
        cached = self._responses.get(job_id)
        return None if cached is None else cached.job

    @staticmethod
    def _keys(job_id: str, job: Job | None) -> list[str]:
        return [record_key(job_id), "" if job is None else waiting_key(job.model)]

    def _add(self, response: PollResponse) -> None:
        self._drop(response.job.id)
        self._responses[response.job.id] = response
        self._bytes += response.bytes
        while self._bytes > self._max_bytes:
            self._drop(next(iter(self._responses)))

    def _drop(self, job_id: str) -> None:
        if (response := self._responses.pop(job_id, None)) is not None:
            self._bytes -= response.bytes
