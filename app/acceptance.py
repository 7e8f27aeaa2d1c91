"""A job is accepted: it belongs to whoever asks, is charged to the caller's day, and waits in the line."""

from app.lifecycle import Job
from app.line import UNKNOWN_SECONDS
from app.wiring import Parts


def accept(parts: Parts, job: Job) -> Job:
    """Make a checked job the caller's, charge its audio seconds, and put it in the line; all or nothing.

    Raises `QuotaExceeded`, `QueueFull`, and `NotFound` if one of its uploads is gone.
    """
    caller = parts.caller
    job = job.model_copy(update={"owner": caller.key_id, "weight": float(caller.priority)})
    seconds = UNKNOWN_SECONDS if job.audio_seconds is None else job.audio_seconds
    with parts.quotas.charged(caller.key_id, caller.allowance, seconds):
        job = parts.jobs.create(job)
    parts.metrics.created.labels(job.kind, job.model).inc()
    return job
