"""A job's record and the steps of its life, as pure functions: a record in, the changed record or None out.

    queued --claimed--> running --published--> succeeded
       |                   |------failed-----> failed
       |                   |------canceled---> canceled
       |                   '------requeued---> queued      (its worker died, or was told to stop)
       |--canceled--> canceled
       '--failed----> failed                               (given up: its executions died too often)

None means that the step is not allowed, and nothing changes. A running job belongs to the execution that claimed it
last: steps of any other execution are refused, so that work that is delivered twice is published once. A step that
ended the job may be taken again by the same execution and changes nothing: its first answer may have been lost.
`jobs.py` keeps records in Redis and takes these steps there.
"""

import json
from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from app.errors import RecordTooNew

SCHEMA = 1  # raised when a release could not read its predecessor's records; then UPGRADES gets an entry
UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}  # version -> the step to the next one

Status = Literal["queued", "running", "succeeded", "failed", "canceled"]
TERMINAL: frozenset[Status] = frozenset({"succeeded", "failed", "canceled"})
_STEP = 0.01  # the smallest progress worth an event


class JobError(BaseModel):
    """What a job or a target died of: a word of the contract, and a sentence."""

    code: str
    detail: str


class Progress(BaseModel):
    """How far a job is, 0 to 1, and what it is doing."""

    ratio: float = 0.0
    stage: str = "queued"


class TargetState(BaseModel):
    """One target's own outcome."""

    name: str
    label: str | None = None
    status: Status = "queued"
    presence: float | None = None
    coherence: float | None = None
    warnings: list[str] = []
    error: JobError | None = None


class Webhook(BaseModel):
    """Whom to tell when a job is over, and of which ends."""

    url: str
    events: list[Status]


class Job(BaseModel):
    """The record. Times are seconds since 1970; `request` and `result` belong to the resource named by `kind`."""

    model_config = ConfigDict(extra="ignore")

    schema_version: int = SCHEMA
    id: str
    kind: str
    owner: str = ""  # id of the API key that made it; empty where keys are switched off
    model: str  # the queue, by the model's name
    request: dict[str, Any]
    audio_ids: list[str]  # uploads that must stay until the job is over
    weight: float = 1.0  # its share of the workers beside other owners' jobs
    audio_seconds: float | None = None  # of the recording that it works on, by its header until it was decoded
    targets: list[TargetState] = []
    status: Status = "queued"
    execution: str | None = None
    attempts: int = 0  # executions begun and not given back
    revision: int = 0  # events so far
    progress: Progress = Progress()
    result: dict[str, Any] | None = None
    expired: bool = False  # what it made was swept
    warnings: list[str] = []
    error: JobError | None = None
    metadata: dict[str, str] = {}
    request_id: str | None = None  # of the request that asked for it, for logs
    webhook: Webhook | None = None
    created_at: float
    changed_at: float
    started_at: float | None = None
    finished_at: float | None = None
    cancel_requested_at: float | None = None
    expires_at: float | None  # None: kept until it is deleted

    @property
    def finished(self) -> bool:
        """Whether nothing will happen to it any more."""
        return self.status in TERMINAL


def parse(document: bytes | str) -> Job:
    """A record from its JSON, upgraded if an older release wrote it; raises `RecordTooNew` if a newer one did, and
    ValueError if it is damaged."""
    return from_fields(json.loads(document))


def from_fields(fields: Any) -> Job:
    """A record from what its JSON holds; see `read`."""
    version = fields.get("schema_version", 0) if isinstance(fields, dict) else None
    if not isinstance(version, int):
        raise ValueError("the record is no JSON object with a schema's number")
    if version > SCHEMA:
        raise RecordTooNew(f"The record has schema {version}; this release reads up to {SCHEMA}.")
    while version < SCHEMA:
        fields = UPGRADES[version](fields)
        version += 1
    return Job.model_validate(fields | {"schema_version": SCHEMA})


def claim(job: Job, execution: str, now: float, attempts: int) -> Job | None:
    """The execution takes the job, from another one too: RQ gives a job again only when it believes that one dead."""
    if job.finished:
        return None
    if job.cancel_requested_at is not None:
        return cancel(job, now)
    if job.execution == execution:
        return job.model_copy()
    if job.attempts >= attempts:
        return give_up(job, now)
    return job.model_copy(
        update={
            "status": "running",
            "execution": execution,
            "attempts": job.attempts + 1,
            "started_at": now,
            "changed_at": now,
            "progress": Progress(ratio=0.0, stage="starting"),
        }
    )


def report_progress(job: Job, execution: str, ratio: float, stage: str, now: float) -> Job | None:
    """The owner is further on; the ratio never falls within an execution. Too small a step changes nothing."""
    if not _is_owned_by(job, execution):
        return None
    ratio = min(1.0, max(job.progress.ratio, ratio))
    if stage == job.progress.stage and ratio - job.progress.ratio < _STEP:
        return job.model_copy()
    return job.model_copy(update={"progress": Progress(ratio=ratio, stage=stage), "changed_at": now})


def update_target(job: Job, execution: str, state: TargetState, now: float) -> Job | None:
    """The owner tells one target's outcome ahead of the whole."""
    if not _is_owned_by(job, execution):
        return None
    targets = [state if target.name == state.name else target for target in job.targets]
    return job.model_copy(update={"targets": targets, "changed_at": now})


def record_duration(job: Job, execution: str, seconds: float, now: float) -> Job | None:
    """The owner has decoded the recording, and knows how long it is."""
    return (
        job.model_copy(update={"audio_seconds": seconds, "changed_at": now}) if _is_owned_by(job, execution) else None
    )


def publish(
    job: Job, execution: str, targets: list[TargetState], result: dict[str, Any], warnings: list[str], now: float
) -> Job | None:
    """The owner's work is done and stored; all of it becomes visible in this one step."""
    if not _is_owned_by(job, execution):
        return _repeat(job, execution, "succeeded")
    update = {"targets": targets, "result": result, "warnings": warnings, "progress": Progress(ratio=1.0, stage="done")}
    return _finish(job, "succeeded", now, update)


def fail(job: Job, execution: str, error: JobError, now: float, targets: list[TargetState] | None = None) -> Job | None:
    """The owner cannot do it, and nobody could."""
    if not _is_owned_by(job, execution):
        return _repeat(job, execution, "failed")
    return _finish(job, "failed", now, {"error": error, "targets": targets or _finish_targets(job, "failed")})


def give_up(job: Job, now: float) -> Job | None:
    """Its executions died too often, whoever owns it."""
    if job.finished:
        return None
    error = JobError(code="worker_lost", detail=f"Given up after {job.attempts} executions that died.")
    return _finish(job, "failed", now, {"error": error, "targets": _finish_targets(job, "failed")})


def request_cancel(job: Job, now: float) -> Job | None:
    """A waiting job is canceled at once; a running one is asked to stop, by a mark that its worker looks for."""
    if job.finished:
        return None
    if job.status == "queued":
        return cancel(job.model_copy(update={"cancel_requested_at": job.cancel_requested_at or now}), now)
    if job.cancel_requested_at is not None:
        return job.model_copy()
    return job.model_copy(update={"cancel_requested_at": now, "changed_at": now})


def cancel(job: Job, now: float) -> Job | None:
    """Nobody works on it any more."""
    return None if job.finished else _finish(job, "canceled", now, {"targets": _finish_targets(job, "canceled")})


def confirm_cancel(job: Job, execution: str, now: float) -> Job | None:
    """The owner saw the request to stop, and did."""
    if not _is_owned_by(job, execution):
        return _repeat(job, execution, "canceled")
    return cancel(job, now) if job.cancel_requested_at is not None else None


def requeue(job: Job, now: float, attempts: int, execution: str | None = None) -> Job | None:
    """Back to waiting: its worker is gone (then the attempt counts), or `execution` itself gives it back."""
    if job.finished or (execution is not None and not _is_owned_by(job, execution)):
        return None
    if job.cancel_requested_at is not None:
        return cancel(job, now)
    if execution is None and job.attempts >= attempts:
        return give_up(job, now)
    update = {"status": "queued", "execution": None, "started_at": None, "changed_at": now, "progress": Progress()}
    if execution is not None:
        update["attempts"] = job.attempts - 1
    return job.model_copy(update=update)


def expire(job: Job, now: float) -> Job | None:
    """What it made was kept as long as promised; the state stays."""
    return job.model_copy(update={"expired": True, "changed_at": now}) if job.finished and not job.expired else None


def _is_owned_by(job: Job, execution: str) -> bool:
    return job.status == "running" and job.execution == execution


def _repeat(job: Job, execution: str, status: Status) -> Job | None:
    return job.model_copy() if job.status == status and job.execution == execution else None


def _finish(job: Job, status: Status, now: float, update: dict[str, Any]) -> Job:
    return job.model_copy(update={"status": status, "finished_at": now, "changed_at": now, **update})


def _finish_targets(job: Job, status: Status) -> list[TargetState]:
    """Targets that had no outcome of their own share the job's."""
    return [
        target if target.status in TERMINAL else target.model_copy(update={"status": status}) for target in job.targets
    ]
