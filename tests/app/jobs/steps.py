"""Ready queues, events and targets, for tests of job records."""

import json
from typing import Any

from redis import Redis

from app.jobs.events import events_key
from app.jobs.lifecycle import Job, TargetState
from app.jobs.rq_queues import queue_name

DONE = [TargetState(name="dog", status="succeeded")]


def ready_ids(redis: Redis) -> list[bytes]:
    found: Any = redis.lrange(f"rq:queue:{queue_name('base')}", 0, -1)
    return found


def read_events(redis: Redis, job: Job) -> list[tuple[bytes, str, dict]]:
    found: Any = redis.xrange(events_key(job.id))
    return [(name, fields[b"type"].decode(), json.loads(fields[b"job"])) for name, fields in found]
