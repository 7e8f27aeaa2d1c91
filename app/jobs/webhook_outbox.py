"""What is to be told to whom, and when next: one message a job, in Redis from the very step that ended the job.

The message is the job itself, under its id; its record says what to tell, and is asked when it is told.
"""

from collections.abc import Iterable
from typing import Any

from redis import Redis
from redis.client import Pipeline

from app.jobs.lifecycle import Job

_DUE = "earmark:webhooks:due"
_TRIES = "earmark:webhooks:tries"
# Whoever takes a message keeps it from others until its lease ends; then it is due again, should its taker have died.
_TAKE = """
local due = redis.call('ZRANGE', KEYS[1], '-inf', ARGV[1], 'BYSCORE', 'LIMIT', 0, ARGV[3])
for _, id in ipairs(due) do redis.call('ZADD', KEYS[1], ARGV[2], id) end
return due
"""


class WebhookOutbox:
    """All messages of one deployment that were not delivered yet."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._take = redis.register_script(_TAKE)

    @staticmethod
    def put(pipe: Pipeline, job: Job) -> None:
        """Enter a job that has just ended, if anybody wants to be told; part of the transaction that ends it."""
        if job.webhook is not None and job.status in job.webhook.events:
            pipe.zadd(_DUE, {job.id: job.finished_at or job.changed_at})

    def take(self, now: float, lease: float, limit: int) -> list[str]:
        """Ids of jobs whose messages are due, the longest first, for this caller alone during `lease` seconds."""
        found: Any = self._take(keys=[_DUE], args=[now, now + lease, limit])
        return [member.decode() for member in found]

    def postpone(self, job_ids: Iterable[str], until: float) -> None:
        """Let messages be due at another time; those that were settled stay so."""
        due = dict.fromkeys(job_ids, until)
        if due:
            self._redis.zadd(_DUE, due, xx=True)

    def count_failure(self, job_id: str) -> int:
        """Count a try that failed; returns how many have."""
        tries: Any = self._redis.hincrby(_TRIES, job_id, 1)
        return tries

    def remove(self, job_ids: Iterable[str]) -> None:
        """Take messages out: delivered, unwanted or given up."""
        ids = list(job_ids)
        if ids:
            with self._redis.pipeline() as pipe:
                pipe.zrem(_DUE, *ids)
                pipe.hdel(_TRIES, *ids)
                pipe.execute()

    def pending_count(self) -> int:
        """How many messages were neither delivered nor given up."""
        count: Any = self._redis.zcard(_DUE)
        return count
