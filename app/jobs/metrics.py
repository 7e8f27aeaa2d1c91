"""Metrics of jobs, counted by the process whose change of a record succeeded.

So a job that two workers hold, or whose worker dies, is counted once.
"""

from typing import Any

from prometheus_client import Counter, Histogram

from app.jobs.lifecycle import Job
from app.metrics import PROCESS
from app.records.separations import COMPUTATION

_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600)

_finished = Counter(
    "earmark_jobs_finished_total",
    "Finished jobs; code: the error of a failed one",
    ["kind", "model", "status", "code"],
    registry=PROCESS,
)
_retried = Counter(
    "earmark_jobs_retried_total",
    "Executions that ended before their job finished; reason: failed, lost (the worker died) or handed_over",
    ["kind", "model", "reason"],
    registry=PROCESS,
)
_abandoned = Counter(
    "earmark_jobs_abandoned_total", "Jobs given up: too many of their workers died", ["kind", "model"], registry=PROCESS
)
_waiting_duration = Histogram(
    "earmark_job_waiting_duration_seconds",
    "Seconds from a job's creation to its first start",
    ["kind", "model"],
    buckets=_SECONDS,
    registry=PROCESS,
)
_duration = Histogram(
    "earmark_job_duration_seconds",
    "Seconds from a job's creation to its end",
    ["kind", "model", "status"],
    buckets=_SECONDS,
    registry=PROCESS,
)
_stage_duration = Histogram(
    "earmark_job_stage_duration_seconds",
    "Seconds of a successful job's stage",
    ["kind", "model", "stage"],
    buckets=_SECONDS,
    registry=PROCESS,
)
_real_time_factor = Histogram(
    "earmark_job_real_time_factor_ratio",
    "Seconds of work per second of recording; quality: of the stems, standard for other kinds",
    ["kind", "model", "quality"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
    registry=PROCESS,
)
_audio_seconds = Counter(
    "earmark_audio_seconds_total", "Seconds of recordings processed", ["kind", "model"], registry=PROCESS
)


def count_change(before: Job, after: Job) -> None:
    """Count a step of a job's life cycle; to be called after it was written."""
    labels = (after.kind, after.model_name)
    if after.status == "running" and after.execution != before.execution:
        if before.status == "running":
            _retried.labels(*labels, "failed").inc()
        elif after.attempts == 1 and after.started_at is not None:
            _waiting_duration.labels(*labels).observe(after.started_at - after.created_at)
    elif before.status == "running" and after.status == "queued":
        _retried.labels(*labels, "handed_over" if after.attempts < before.attempts else "lost").inc()
    elif after.is_finished and not before.is_finished:
        _count_end(after)


def _count_end(job: Job) -> None:
    labels = (job.kind, job.model_name)
    code = job.error.code if job.error else ""
    _finished.labels(*labels, job.status, code).inc()
    if code == "worker_lost":
        _abandoned.labels(*labels).inc()
    if job.finished_at is not None:
        _duration.labels(*labels, job.status).observe(job.finished_at - job.created_at)
    if job.result is not None:
        _observe_result(job, job.result)


def _observe_result(job: Job, result: dict[str, Any]) -> None:
    """Observe the metrics in a result, if its kind has any."""
    metrics = result.get("metrics") or {}
    seconds_by_stage = {name: of for name, of in metrics.items() if name not in COMPUTATION}
    factor = seconds_by_stage.pop("real_time_factor", None)
    if factor is not None:
        _real_time_factor.labels(job.kind, job.model_name, result.get("quality", "standard")).observe(factor)
    for stage, seconds in seconds_by_stage.items():
        _stage_duration.labels(job.kind, job.model_name, stage).observe(seconds)
    recording = result.get("mixture") or result.get("audio") or {}
    _audio_seconds.labels(job.kind, job.model_name).inc(recording.get("duration") or 0.0)
