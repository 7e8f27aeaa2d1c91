"""Lists of jobs in the order of their creation, one per owner and kind, for reading page by page.

Each list is a sorted set with equal scores: Redis then sorts by the ids, which sort by their time of creation.
"""

import heapq
from collections.abc import Collection, Iterator
from itertools import islice
from typing import Any

from redis import Redis
from redis.client import Pipeline

from app.errors import RecordTooNew, RecordUnreadable
from app.jobs import lifecycle
from app.jobs.kinds import Kind
from app.jobs.lifecycle import Job, Status
from app.records import ids
from app.records.quarantine import Quarantine
from app.redis_client import server_clock

_TRIM_BATCH = 1000  # entries whose records are looked up in one round trip
_MERGE_LISTS = 1000  # of which a batch is read in one round trip
_MERGE_BATCH = 50  # ids of a list, and records of all, that are read at once
_OWNERS = "earmark:owners"  # all owners who ever created a job: at most as many as there are keys


def record_key(job_id: str) -> str:
    """Return the Redis key of a record."""
    return f"earmark:job:{job_id}"


class Listing:
    """The lists of one deployment. `reads_per_page`: how many records one page of the jobs in one state may read."""

    def __init__(self, redis: Redis, reads_per_page: int = 200) -> None:
        self._redis = redis
        self._clock = server_clock(redis)
        self._quarantine = Quarantine(redis)
        self._reads_per_page = reads_per_page

    @staticmethod
    def key(owner: str, kind: str) -> str:
        """Return the Redis key of an owner's jobs of one kind, expired ones included."""
        return f"earmark:jobs:{kind}:{owner}"

    def add(self, pipe: Pipeline, job: Job) -> None:
        """Add a new job, within a transaction."""
        pipe.zadd(self.key(job.owner, job.kind), {job.id: 0})
        pipe.sadd(_OWNERS, job.owner)

    def remove(self, pipe: Pipeline, owner: str, kind: str, job_id: str) -> None:
        """Remove a deleted job, within a transaction."""
        pipe.zrem(self.key(owner, kind), job_id)

    def owns(self, owner: str, kind: str, job_id: str) -> bool:
        """Whether a job is an owner's, by its list: the record may be unreadable."""
        return self._redis.zscore(self.key(owner, kind), job_id) is not None

    def owners(self) -> list[str]:
        """Return all owners who have created jobs, `""` for jobs without one among them."""
        members: Any = self._redis.smembers(_OWNERS)
        return sorted(member.decode() for member in members)

    def page(
        self, owner: str, kind: str, limit: int, before: str | None, status: Status | None
    ) -> tuple[list[Job], str | None]:
        """Return an owner's jobs created before the id `before`, the newest first, and the `before` of the next page.

        That is None at the end. A page with a `status` may hold fewer than `limit` jobs though more follow: only so
        many records are read for it. Unreadable records are left out.
        """
        max_reads = self._reads_per_page if status else limit
        start = f"({before}" if before else "+"
        key = self.key(owner, kind)
        members: Any = self._redis.zrange(key, start, "-", desc=True, bylex=True, offset=0, num=max_reads + 1)
        job_ids = [member.decode() for member in members]
        jobs: list[Job] = []
        for count, document in enumerate(self._documents(job_ids[:max_reads]), start=1):
            if (job := self._parse(job_ids[count - 1], document)) is not None and status in (None, job.status):
                jobs.append(job)
            if len(jobs) == limit or count == max_reads:
                return jobs, job_ids[count - 1] if count < len(job_ids) else None
        return jobs, None

    def merged(self, owners: Collection[str], kinds: Collection[str], status: Status | None) -> Iterator[Job]:
        """Yield the jobs of several owners and kinds, the newest first, as `page` has those of one."""
        keys = [self.key(owner, kind) for kind in kinds for owner in owners]
        lists = [self._ids(key, first) for key, first in zip(keys, self._first_ids(keys), strict=True) if first]
        newest = heapq.merge(*lists, key=ids.timestamp, reverse=True)
        while job_ids := list(islice(newest, _MERGE_BATCH)):
            for job_id, document in zip(job_ids, self._documents(job_ids), strict=True):
                if (job := self._parse(job_id, document)) is not None and status in (None, job.status):
                    yield job

    def _first_ids(self, keys: list[str]) -> Iterator[list[bytes]]:
        """Yield the newest ids of each list, of many lists in one round trip."""
        for start in range(0, len(keys), _MERGE_LISTS):
            with self._redis.pipeline(transaction=False) as pipe:
                for key in keys[start : start + _MERGE_LISTS]:
                    pipe.zrange(key, "+", "-", desc=True, bylex=True, offset=0, num=_MERGE_BATCH)
                yield from pipe.execute()

    def _ids(self, key: str, members: Any) -> Iterator[str]:
        """Yield the ids in a list, the newest first, of which these members are the newest."""
        while members:
            yield from (member.decode() for member in members)
            before = f"({members[-1].decode()}"
            members = self._redis.zrange(key, before, "-", desc=True, bylex=True, offset=0, num=_MERGE_BATCH)

    def trim(self, kind: Kind, age: float) -> int:
        """Remove jobs created more than `age` seconds ago whose records Redis has dropped. Returns how many.

        A record may be older and exist: its job has waited for long, is kept, or was created when records were to stay
        for longer.
        """
        oldest = ids.first_id(kind.prefix, self._clock.now() - age)
        return sum(self._remove_dropped(self.key(owner, kind.name), oldest) for owner in self.owners())

    def _remove_dropped(self, key: str, oldest: str) -> int:
        removed = 0
        start = "-"
        while True:
            members: Any = self._redis.zrange(key, start, f"({oldest}", bylex=True, offset=0, num=_TRIM_BATCH)
            with self._redis.pipeline(transaction=False) as pipe:
                for member in members:
                    pipe.exists(record_key(member.decode()))
                dropped = [member for member, exists in zip(members, pipe.execute(), strict=True) if not exists]
            removed += self._redis.zrem(key, *dropped) if dropped else 0
            if len(members) < _TRIM_BATCH:
                return removed
            start = f"({members[-1].decode()}"

    def _documents(self, job_ids: list[str]) -> list[bytes | None]:
        documents: Any = self._redis.mget([record_key(job_id) for job_id in job_ids]) if job_ids else []
        return documents

    def _parse(self, job_id: str, document: bytes | None) -> Job | None:
        """Return the job; None if Redis has dropped its record, or if it is unreadable or a newer release wrote it."""
        try:
            return None if document is None else lifecycle.parse(document)
        except RecordTooNew:
            return None
        except RecordUnreadable:
            self._quarantine.add(record_key(job_id))
            return None
