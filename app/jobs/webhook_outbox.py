"""Outbox of webhook messages: one per job, written in the transaction that finishes the job.

A message is the job's id with the time at which it is due; its content is made from the record on delivery.
"""

from collections.abc import Iterable
from typing import Any

from redis import Redis
from redis.client import Pipeline

from app.jobs.lifecycle import Job
from app.redis_client import execute_when_full

DUE_KEY = "earmark:webhooks:due"
_TRIES = "earmark:webhooks:tries"
# A message that was taken is due again when its lease ends: the process that took it may have died.
_TAKE = """#!lua flags=allow-oom
local due = redis.call('ZRANGE', KEYS[1], '-inf', ARGV[1], 'BYSCORE', 'LIMIT', 0, ARGV[3])
for _, id in ipairs(due) do redis.call('ZADD', KEYS[1], ARGV[2], id) end
return due
"""


class WebhookOutbox:
    """The undelivered messages of one deployment."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._take = redis.register_script(_TAKE)

    @staticmethod
    def put(pipe: Pipeline, job: Job) -> None:
        """Add a job if its webhook wants its terminal state; within the transaction that finishes it.

        A webhook that is in the store may turn out not to want it on delivery.
        """
        if job.wants_webhook or "webhook" in job.stored_names:
            pipe.zadd(DUE_KEY, {job.id: job.finished_at or job.changed_at})

    def take(self, now: float, lease: float, limit: int) -> list[str]:
        """Return ids of jobs whose messages are due, the longest due first; no other caller gets them for `lease` s."""
        members: Any = self._take(keys=[DUE_KEY], args=[now, now + lease, limit])
        return [member.decode() for member in members]

    def postpone(self, job_ids: Iterable[str], until: float) -> None:
        """Let messages be due at another time, unless they were removed."""
        due = dict.fromkeys(job_ids, until)
        if due:
            with self._redis.pipeline() as pipe:
                pipe.zadd(DUE_KEY, due, xx=True)
                execute_when_full(self._redis, pipe)

    def count_failure(self, job_id: str) -> int:
        """Count a failed attempt; returns how many have failed."""
        with self._redis.pipeline() as pipe:
            pipe.hincrby(_TRIES, job_id, 1)
            (failures,) = execute_when_full(self._redis, pipe)
        return failures

    def remove(self, job_ids: Iterable[str]) -> None:
        """Remove messages: delivered, unwanted or given up."""
        ids = list(job_ids)
        if ids:
            with self._redis.pipeline() as pipe:
                pipe.zrem(DUE_KEY, *ids)
                pipe.hdel(_TRIES, *ids)
                pipe.execute()

    def pending_count(self) -> int:
        """Return how many messages are neither delivered nor given up."""
        count: Any = self._redis.zcard(DUE_KEY)
        return count
