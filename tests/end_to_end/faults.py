"""Jobs suspended in a stage while a fault is injected, and assertions about them afterwards."""

import contextlib
import socket
import subprocess
from collections.abc import Iterator
from typing import Any

import psutil
from rq.job import Job as QueuedJob

from app.jobs.large_fields import LargeFields
from app.jobs.lifecycle import Job
from app.settings import Settings
from tests.end_to_end.deployment import Deployment, eventually

DOG = [{"name": "dog", "label": "Dog"}]
LONG = 150.0  # duration of a recording in seconds, which takes some seconds to separate
RECOVERY_LIMIT = 30.0  # seconds from the death of a worker to the second start of its job, with default settings
_INTERVALS = ("heartbeat_seconds", "heartbeat_timeout", "sweep_seconds", "lost_after")
DEFAULTS: dict[str, Any] = {name: Settings.model_fields[name].default for name in _INTERVALS}


def worker_of(deployment: Deployment, job: Job) -> subprocess.Popen:
    """Return the worker that runs the job."""
    queued = QueuedJob.fetch(job.id, connection=deployment.redis, serializer="json")
    name = queued.worker_name or ""
    return next(worker for worker in deployment.workers if name.startswith(f"{socket.gethostname()}.{worker.pid}."))


def wait_for_next_execution(deployment: Deployment, job: Job, first: str | None, seconds: float) -> Job:
    """Wait until another execution than the first runs the job; return the record."""
    return eventually(
        lambda: (record := deployment.jobs.get(job.id)).execution not in (None, first) and record, seconds
    )


def is_alive(process: psutil.Process) -> bool:
    """Return whether a process runs and is not a zombie."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextlib.contextmanager
def suspended_decoder(deployment: Deployment) -> Iterator[psutil.Process]:
    """Wait for a decoder and suspend it inside the context, independently of the machine's speed."""
    decoder = deployment.suspend_decoder(deployment.living_workers())
    yield decoder
    with contextlib.suppress(psutil.NoSuchProcess):
        decoder.resume()


@contextlib.contextmanager
def stage_reached(deployment: Deployment, job: Job, stage: str) -> Iterator[Job]:
    """Wait until a job is in a stage and yield its record; decoding and storing are suspended inside the context."""
    with contextlib.ExitStack() as stack:
        if stage == "decoding":
            stack.enter_context(suspended_decoder(deployment))
        elif stage == "storing":
            deployment.wait_running(job)
            stack.enter_context(deployment.unavailable_store())
        yield eventually(lambda: (record := deployment.jobs.get(job.id)).progress.stage == stage and record)


def assert_done_once(deployment: Deployment, job: Job) -> Job:
    """Assert one success in the job's events, and only the objects of its record in the store; return the record."""
    large_fields = LargeFields(deployment.redis, deployment.storage, deployment.settings)
    done = large_fields.load(deployment.jobs.get(job.id))
    assert done.status == "succeeded", f"{done.error}\n{deployment.logs()}"
    events: Any = deployment.redis.xrange(f"earmark:job:{job.id}:events")
    assert sum(b'"status":"succeeded"' in event[b"job"] and event[b"type"] == b"state" for _, event in events) == 1
    keys = sorted(_keys(done.result))
    assert deployment.output_keys(job) == keys
    assert {key.split("/")[2] for key in keys} <= {done.execution}
    return done


def _keys(value: Any) -> Iterator[str]:
    """Return all values of `key` in a result."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == "key":
                yield inner
            else:
                yield from _keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _keys(inner)
