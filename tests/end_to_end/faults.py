"""Jobs held in a stage while something is done to their worker, and what must hold of a job afterwards."""

import contextlib
import socket
import subprocess
from collections.abc import Iterator
from typing import Any

import psutil
from rq.job import Job as QueuedJob

from app.jobs.lifecycle import Job
from app.settings import Settings
from tests.end_to_end.deployment import Deployment, eventually

DOG = [{"name": "dog", "label": "Dog"}]
LONG = 150.0  # seconds of recording: some of work
PROMISE = 30.0  # seconds from a worker's death to its job's second start, with the settings' defaults
_PACE = ("heartbeat_seconds", "heartbeat_timeout", "sweep_seconds", "lost_after")
DEFAULTS: dict[str, Any] = {name: Settings.model_fields[name].default for name in _PACE}


def owner(deployment: Deployment, job: Job) -> subprocess.Popen:
    """The worker that runs the job."""
    queued = QueuedJob.fetch(job.id, connection=deployment.redis, serializer="json")
    name = queued.worker_name or ""
    return next(worker for worker in deployment.workers if name.startswith(f"{socket.gethostname()}.{worker.pid}."))


def begun_anew(deployment: Deployment, job: Job, first: str | None, seconds: float) -> Job:
    """The record once another execution than the first has the job."""
    return eventually(lambda: (found := deployment.jobs.get(job.id)).execution not in (None, first) and found, seconds)


def works(process: psutil.Process) -> bool:
    """Whether it is more than an entry that nobody has asked about."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextlib.contextmanager
def decoding(deployment: Deployment) -> Iterator[psutil.Process]:
    """A job's decoder, held as long as the block lasts, however fast the machine."""
    workers = deployment.living()
    decoder = eventually(lambda: next(filter(None, map(deployment.decoder, workers)), None))
    decoder.suspend()
    yield decoder
    with contextlib.suppress(psutil.NoSuchProcess):
        decoder.resume()


@contextlib.contextmanager
def held(deployment: Deployment, job: Job, stage: str) -> Iterator[Job]:
    """The job's record in a stage; where the stage can be held, it is, however fast the machine."""
    with contextlib.ExitStack() as stack:
        if stage == "decoding":
            stack.enter_context(decoding(deployment))
        elif stage == "storing":
            deployment.wait_running(job)
            stack.enter_context(deployment.absent_store())
        yield eventually(lambda: (found := deployment.jobs.get(job.id)).progress.stage == stage and found)


def assert_done_once(deployment: Deployment, job: Job) -> Job:
    """One success in the record's events, and in the store what the record says and nothing else."""
    done = deployment.jobs.get(job.id)
    assert done.status == "succeeded", f"{done.error}\n{deployment.logs()}"
    events: Any = deployment.redis.xrange(f"earmark:job:{job.id}:events")
    assert sum(b'"status":"succeeded"' in event[b"job"] and event[b"type"] == b"state" for _, event in events) == 1
    keys = sorted(_keys(done.result))
    assert deployment.stored(job) == keys
    assert {key.split("/")[2] for key in keys} <= {done.execution}
    return done


def _keys(value: Any) -> Iterator[str]:
    """Where a result says that something is stored."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == "key":
                yield inner
            else:
                yield from _keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _keys(inner)
