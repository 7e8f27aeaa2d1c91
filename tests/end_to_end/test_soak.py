"""Many jobs while workers are killed at random: each is done once."""

import json
import os
import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from app.jobs.lifecycle import Job
from tests.end_to_end.deployment import Deployment
from tests.end_to_end.faults import DEFAULTS, DOG, RECOVERY_LIMIT, assert_done_once
from tests.end_to_end.figures import SOAK, Figures

JOBS = int(os.environ.get("EARMARK_SOAK_JOBS", 1000 if SOAK else 60))
WORKERS = 3 if SOAK else 2
KILLS = None if SOAK else 1  # None: until the last job is done
SEED = 6


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600 if SOAK else 300)
def test_every_job_is_done_once_while_workers_are_killed(deploy: Callable[..., Deployment], figures: Figures):
    deployment = deploy(queue_jobs=10 * JOBS, job_attempts=20, **(DEFAULTS if SOAK else {}))
    deployment.start_housekeeping()
    started = time.monotonic()
    workers = deployment.start_workers(WORKERS)
    start_seconds = (time.monotonic() - started) / WORKERS  # of one worker
    mixtures = [deployment.upload(seconds=seconds) for seconds in (1.0, 2.0, 4.0)]
    rng = random.Random(SEED)
    jobs = [deployment.submit(rng.choice(mixtures), DOG) for _ in range(JOBS)]
    started = time.monotonic()
    kills, next_kill = 0, started + (3 * start_seconds if SOAK else 1.0)
    while deployment.jobs.unfinished_count():
        if time.monotonic() >= next_kill and kills != KILLS:
            victim = rng.randrange(WORKERS)
            deployment.kill(workers[victim])
            workers[victim] = deployment.start_workers(1)[0]
            kills += 1
            next_kill = time.monotonic() + rng.uniform(3, 5) * start_seconds
        time.sleep(0.1)
    seconds = time.monotonic() - started
    done = [assert_done_once(deployment, job) for job in jobs]
    spans = [execution_span(deployment, job) for job in done]
    longest = max(end - start for start, end in spans)
    restarted = [job for job in done if job.attempts > 1]
    assert kills > 0
    # Each kill costs a job the time to detect it plus the work of one execution.
    work = max(end - start for (start, end), job in zip(spans, done, strict=True) if job.attempts == 1)
    most = max(job.attempts for job in done)
    assert longest < most * (RECOVERY_LIMIT + work) + 10.0
    figures.add(
        "many",
        f"{JOBS} jobs, {WORKERS} workers",
        f"{kills}, one every {seconds / kills:.0f} s (a worker's start: {start_seconds:.0f} s)",
        f"all succeeded, each stem stored once; {len(restarted)} were restarted, at most {most} executions of one",
        f"{seconds:.0f} s; a job's longest from its first start to its end: {longest:.0f} s",
    )


def execution_span(deployment: Deployment, job: Job) -> tuple[float, float]:
    """Return when the first execution of a job started and when the job finished, in seconds since 1970."""
    events: Any = deployment.redis.xrange(f"earmark:job:{job.id}:events")
    starts = [
        started
        for _, event in events
        if event[b"type"] == b"state" and (started := _field(event[b"job"], "started_at"))
    ]
    assert job.finished_at is not None
    return min(starts), job.finished_at


def _field(document: bytes, name: str) -> float | None:
    return json.loads(document).get(name)
