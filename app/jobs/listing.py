"""Everybody's jobs of a kind in the order in which they were made, for lists that are read page by page.

One sorted set an owner and kind, with equal scores: Redis then sorts by the ids, and ids sort by the time at which
they were made.
"""

import time
from typing import Any

from redis import Redis
from redis.client import Pipeline

from app.errors import RecordTooNew
from app.jobs import lifecycle
from app.jobs.kinds import Kind
from app.jobs.lifecycle import Job, Status
from app.records import ids

_READ_PER_PAGE = 200  # records read for one page of the jobs in one state


def record_key(job_id: str) -> str:
    """The Redis key of a record."""
    return f"earmark:job:{job_id}"


_OWNERS = "earmark:owners"  # whoever made a job, ever: as many as there are keys


def _list_key(owner: str, kind: str) -> str:
    return f"earmark:jobs:{kind}:{owner}"


class Listing:
    """The lists of one deployment."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def add(self, pipe: Pipeline, job: Job) -> None:
        """Enter a new job, within a transaction."""
        pipe.zadd(_list_key(job.owner, job.kind), {job.id: 0})
        pipe.sadd(_OWNERS, job.owner)

    def remove(self, pipe: Pipeline, job: Job) -> None:
        """Strike a deleted job out, within a transaction."""
        pipe.zrem(_list_key(job.owner, job.kind), job.id)

    def page(
        self, owner: str, kind: str, limit: int, before: str | None, status: Status | None
    ) -> tuple[list[Job], str | None]:
        """An owner's jobs, the newest first, made before the one with the id `before`; and the id to go on from,
        None at the end.

        Fewer than `limit` come, with more to follow, where few of those looked at are in the state asked for.
        """
        most = _READ_PER_PAGE if status else limit
        start = f"({before}" if before else "+"
        key = _list_key(owner, kind)
        found: Any = self._redis.zrange(key, start, "-", desc=True, bylex=True, offset=0, num=most + 1)
        job_ids = [member.decode() for member in found]
        jobs: list[Job] = []
        for place, document in enumerate(self._documents(job_ids[:most]), start=1):
            if (job := _read(document)) is not None and status in (None, job.status):
                jobs.append(job)
            if len(jobs) == limit or place == most:
                return jobs, job_ids[place - 1] if place < len(job_ids) else None
        return jobs, None

    def trim(self, kind: Kind, age: float) -> int:
        """Drop jobs made more than `age` seconds ago, whose records Redis has dropped. Returns how many.

        Jobs of a kind that is kept are old for good reason: those are looked at one by one.
        """
        oldest = ids.first_id(kind.prefix, time.time() - age)
        owners: Any = self._redis.smembers(_OWNERS)
        keys = [_list_key(owner.decode(), kind.name) for owner in owners]
        if not kind.kept:
            return sum(self._redis.zremrangebylex(key, "-", f"({oldest}") for key in keys)
        return sum(self._drop_gone(key, oldest) for key in keys)

    def _drop_gone(self, key: str, oldest: str) -> int:
        found: Any = self._redis.zrange(key, "-", f"({oldest}", bylex=True)
        with self._redis.pipeline(transaction=False) as pipe:
            for member in found:
                pipe.exists(record_key(member.decode()))
            gone = [member for member, there in zip(found, pipe.execute(), strict=True) if not there]
        return self._redis.zrem(key, *gone) if gone else 0

    def _documents(self, job_ids: list[str]) -> list[bytes | None]:
        documents: Any = self._redis.mget([record_key(job_id) for job_id in job_ids]) if job_ids else []
        return documents


def _read(document: bytes | None) -> Job | None:
    """None for what is gone, and for what only a newer release can read: that one lists it."""
    try:
        return None if document is None else lifecycle.parse(document)
    except RecordTooNew:
        return None
