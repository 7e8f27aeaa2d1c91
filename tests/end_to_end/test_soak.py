"""Many jobs through workers that are killed at random: each is done once, and none waits for ever."""

import json
import os
import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from app.jobs.lifecycle import Job
from tests.end_to_end.deployment import Deployment
from tests.end_to_end.faults import DEFAULTS, DOG, PROMISE, assert_done_once
from tests.end_to_end.figures import SOAK, Figures

JOBS = int(os.environ.get("EARMARK_SOAK_JOBS", 1000 if SOAK else 12))
WORKERS = 3 if SOAK else 2
KILLS = None if SOAK else 1  # None: until the last job is done
SEED = 6


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600 if SOAK else 300)
def test_every_job_is_done_once_whatever_is_killed(deploy: Callable[..., Deployment], figures: Figures):
    deployment = deploy(queue_jobs=10 * JOBS, job_attempts=20, **(DEFAULTS if SOAK else {}))
    deployment.start_housekeeping()
    begun = time.monotonic()
    workers = deployment.start_workers(WORKERS)
    start = (time.monotonic() - begun) / WORKERS  # s that one worker takes to start, alone
    mixtures = [deployment.upload(seconds=seconds) for seconds in (1.0, 2.0, 4.0)]
    chance = random.Random(SEED)
    jobs = [deployment.submit(chance.choice(mixtures), DOG) for _ in range(JOBS)]
    begun = time.monotonic()
    kills, next_kill = 0, begun + (3 * start if SOAK else 1.0)
    while deployment.jobs.unfinished_count():
        if time.monotonic() >= next_kill and kills != KILLS:
            victim = chance.randrange(WORKERS)
            deployment.kill(workers[victim])
            workers[victim] = deployment.start_workers(1)[0]
            kills += 1
            next_kill = time.monotonic() + chance.uniform(3, 5) * start
        time.sleep(0.1)
    took = time.monotonic() - begun
    over = [assert_done_once(deployment, job) for job in jobs]
    stages = [taken(deployment, job) for job in over]
    executing = max(last - first for first, last in stages)
    lost = [job for job in over if job.attempts > 1]
    assert kills > 0
    # A kill costs a job what it takes to notice it, and the work again; so often as it was hit.
    work = max(last - first for (first, last), job in zip(stages, over, strict=True) if job.attempts == 1)
    most = max(job.attempts for job in over)
    assert executing < most * (PROMISE + work) + 10.0
    figures.add(
        "many",
        f"{JOBS} jobs, {WORKERS} workers",
        f"{kills}, one every {took / kills:.0f} s (a worker's start: {start:.0f} s)",
        f"all succeeded, each stem stored once; {len(lost)} were begun again, at most {most} executions of one",
        f"{took:.0f} s; a job's longest from its first start to its end: {executing:.0f} s",
    )


def taken(deployment: Deployment, job: Job) -> tuple[float, float]:
    """When a job was first begun, and when it ended; seconds since 1970."""
    events: Any = deployment.redis.xrange(f"earmark:job:{job.id}:events")
    begun = [
        started
        for _, event in events
        if event[b"type"] == b"state" and (started := _field(event[b"job"], "started_at"))
    ]
    assert job.finished_at is not None
    return min(begun), job.finished_at


def _field(document: bytes, name: str) -> float | None:
    return json.loads(document).get(name)
