"""A job's record and the steps of its life cycle, as pure functions from a record to the changed record or None.

    queued --claim--> running --publish----------> succeeded
       |                 |------fail-------------> failed
       |                 |------confirm_cancel---> canceled
       |                 '------requeue----------> queued      (its worker died, or shuts down)
       |--cancel---> canceled
       |--move-----> queued                                    (for another version of its model)
       '--give_up--> failed                                    (its executions died too often, or its model is gone)

    succeeded --amend--> succeeded                             (another model has embedded a saved query)

None means that the step is not allowed, and nothing changes. A running job belongs to the execution that claimed it
last: steps of any other execution are refused, so that work that is delivered twice is published once. The execution
whose step finished the job may repeat it, which changes nothing: the reply to the first call may have been lost.
`repository.py` keeps records in Redis and applies these steps there.
"""

import json
from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from app.errors import RecordTooNew, RecordUnreadable
from app.records.shared import MatchedClass

SCHEMA = 2  # the newest version that this release reads
STORED_SCHEMA = 2  # of a record with stored fields, which earlier releases would take for empty
# Version -> the upgrade to the next one; without an entry, records of that version are read as they are.
UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}

TerminalStatus = Literal["succeeded", "failed", "canceled"]
Status = Literal["queued", "running", TerminalStatus]
TERMINAL: frozenset[Status] = frozenset(get_args(TerminalStatus))
_MINIMUM_PROGRESS = 0.01  # less is no event


class JobError(BaseModel):
    """The error of a failed job or target: a documented code, and a sentence."""

    code: str
    detail: str


class Progress(BaseModel):
    """The progress of a job, 0 to 1, and its current stage."""

    ratio: float = 0.0
    stage: str = "queued"


class TargetState(BaseModel):
    """The outcome of one target. `label`: its class, if it was asked for by label or found by `auto`. `matched`: the
    classes that its text means; only of a target with a text. `presence`: the probability that it is in the mixture.
    `coherence`: how alike the examples of its query sound, 0 to 1."""

    name: str
    label: str | None = None
    matched: list[MatchedClass] = Field(default=[], exclude_if=lambda matched: not matched)
    status: Status = "queued"
    presence: float | None = None
    coherence: float | None = None
    warnings: list[str] = []
    error: JobError | None = None


class Webhook(BaseModel):
    """The address to notify when a job finishes, and the states to notify of."""

    url: str
    events: list[Status]


class StoredFields(BaseModel):
    """Fields of a record that are too large for Redis: one JSON object in the store, under `key`."""

    key: str
    names: list[str]


class Job(BaseModel):
    """The record of a job. Times are seconds since 1970; `request` and `result` are defined by its kind.

    A record with `stored_fields` is read from Redis without them (`is_partial`); `LargeFields.load` completes it.
    """

    model_config = ConfigDict(extra="ignore")

    schema_version: int = 1  # the lowest that can express the record
    id: str
    kind: str
    owner: str = ""  # id of the API key that made it; empty where keys are switched off
    model: str  # the queue: the id of the model that does it, such as `base@3`; earlier releases wrote its name alone
    # Whether the request named the version: then no other one may do it.
    version_named: bool = Field(default=False, exclude_if=lambda named: not named)
    request: dict[str, Any]
    audio_ids: list[str]  # uploads that must be kept until the job has finished
    weight: float = 1.0  # in the fair queue: its share beside other owners' jobs
    audio_seconds: float | None = None  # of its recording: by the header, and once decoded, in truth
    # Charged to its owner's quota; None, and not in the record, where an earlier release charged the duration alone.
    charged_seconds: float | None = Field(default=None, exclude_if=lambda seconds: seconds is None)
    # How many times as long it takes as another one of this kind on its recording.
    effort: float = Field(default=1.0, exclude_if=lambda effort: effort == 1)
    targets: list[TargetState] = []
    status: Status = "queued"
    execution: str | None = None
    attempts: int = 0  # executions that claimed it, without those that released it
    revision: int = 0  # events so far
    progress: Progress = Progress()
    result: dict[str, Any] | None = None
    # Bytes in the store that its owner may keep only so many of, until it is deleted.
    excerpt_bytes: int = Field(default=0, exclude_if=lambda count: not count)
    expired: bool = False  # its output was deleted after its retention time
    warnings: list[str] = []
    error: JobError | None = None
    metadata: dict[str, str] = {}
    request_id: str | None = None  # of the HTTP request that created it, for logs
    webhook: Webhook | None = None
    created_at: float
    changed_at: float
    started_at: float | None = None
    finished_at: float | None = None
    cancel_requested_at: float | None = None
    expires_at: float | None  # None: kept until it is deleted
    stored_fields: list[StoredFields] = Field(default=[], exclude_if=lambda value: not value)
    is_partial: bool = Field(default=False, exclude=True)  # its stored fields are not loaded

    def document(self, include: set[str] | None = None, exclude: Iterable[str] = ()) -> str:
        """Return the JSON for Redis: all fields, or those to `include`, without stored ones and those to `exclude`."""
        return self.model_dump_json(include=include, exclude={*exclude, *self.stored_names})

    @property
    def model_name(self) -> str:
        """The name of its model, without the version."""
        return self.model.partition("@")[0]

    @property
    def stored_names(self) -> list[str]:
        """The names of the fields that are in the store."""
        return [name for stored in self.stored_fields for name in stored.names]

    @property
    def wants_webhook(self) -> bool:
        """Whether its webhook is to be told of its status."""
        return self.webhook is not None and self.status in self.webhook.events

    @property
    def is_finished(self) -> bool:
        """Whether it is in a terminal state."""
        return self.status in TERMINAL


def parse(document: bytes | str) -> Job:
    """Return a record from its JSON, upgraded if an older release wrote it.

    Raises `RecordTooNew` if a newer release wrote it, and `RecordUnreadable` if it is damaged.
    """
    try:
        fields = json.loads(document)
    except (ValueError, RecursionError) as error:
        raise RecordUnreadable() from error
    return from_fields(fields)


def from_fields(fields: Any) -> Job:
    """Return a record from its decoded JSON; see `parse`."""
    try:
        return _from_fields(fields)
    except RecordTooNew:
        raise
    except Exception as error:  # whatever an upgrade meets in damaged fields
        raise RecordUnreadable() from error


def _from_fields(fields: Any) -> Job:
    version = fields.get("schema_version", 0) if isinstance(fields, dict) else None
    if not isinstance(version, int):
        raise ValueError("the record is not a JSON object with a schema version")
    if version > SCHEMA:
        raise RecordTooNew(f"The record has schema {version}; this release reads up to {SCHEMA}.")
    for step in range(version, SCHEMA):
        if step in UPGRADES:
            fields = UPGRADES[step](fields) | {"schema_version": step + 1}
    if fields.get("stored_fields"):
        fields = {"request": {}, "audio_ids": [], "is_partial": True} | fields
    return Job.model_validate(fields)


def claim(job: Job, execution: str, now: float, attempts: int) -> Job | None:
    """Give the job to an execution, also if another had it: RQ delivers a job again only if its worker seems dead."""
    if job.is_finished:
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
    """Report the progress of the job's execution; the ratio never falls, and too small a step changes nothing."""
    if not _is_owned_by(job, execution):
        return None
    ratio = min(1.0, max(job.progress.ratio, ratio))
    if stage == job.progress.stage and ratio - job.progress.ratio < _MINIMUM_PROGRESS:
        return job.model_copy()
    return job.model_copy(update={"progress": Progress(ratio=ratio, stage=stage), "changed_at": now})


def update_target(job: Job, execution: str, state: TargetState, now: float) -> Job | None:
    """Publish the outcome of one target before the rest."""
    if not _is_owned_by(job, execution):
        return None
    targets = [state if target.name == state.name else target for target in job.targets]
    return job.model_copy(update={"targets": targets, "changed_at": now})


def record_duration(job: Job, execution: str, seconds: float, charged_seconds: float, now: float) -> Job | None:
    """Record the duration of the decoded recording, and the seconds charged for it."""
    if not _is_owned_by(job, execution):
        return None
    update = {"audio_seconds": seconds, "charged_seconds": charged_seconds, "changed_at": now}
    return job.model_copy(update=update)


def publish(
    job: Job,
    execution: str,
    targets: list[TargetState],
    result: dict[str, Any],
    warnings: list[str],
    now: float,
    stored: StoredFields | None = None,
    excerpt_bytes: int = 0,
) -> Job | None:
    """Finish the job with its stored output, which becomes visible in this one step.

    stored: where targets, result and warnings are, if they are too large for the record.
    """
    if not _is_owned_by(job, execution):
        return _repeat(job, execution, "succeeded")
    update = {"targets": targets, "result": result, "warnings": warnings, "progress": Progress(ratio=1.0, stage="done")}
    finished = _finish(job, "succeeded", now, update | {"excerpt_bytes": excerpt_bytes})
    return finished if stored is None else add_stored_fields(finished, stored)


def amend(job: Job, result: dict[str, Any], now: float, stored: StoredFields | None = None) -> Job | None:
    """Replace the result of a complete job that has succeeded by one that contains more; `stored` as in `publish`."""
    if job.status != "succeeded":
        return None
    amended = without_stored_outcome(job).model_copy(update={"result": result, "changed_at": now})
    return amended if stored is None else add_stored_fields(amended, stored)


def add_stored_fields(job: Job, stored: StoredFields) -> Job:
    """Return the record with a reference to fields in the store, which stay out of Redis."""
    return job.model_copy(update={"stored_fields": [*job.stored_fields, stored], "schema_version": STORED_SCHEMA})


def without_stored_outcome(job: Job) -> Job:
    """Return a complete record without the reference to its outcome in the store, if it has one."""
    others = [fields for fields in job.stored_fields if "result" not in fields.names]
    return job.model_copy(update={"stored_fields": others})


def fail(
    job: Job,
    execution: str,
    error: JobError,
    now: float,
    targets: list[TargetState] | None = None,
    warnings: list[str] | None = None,
) -> Job | None:
    """Finish the job with an error that no retry would avoid."""
    if not _is_owned_by(job, execution):
        return _repeat(job, execution, "failed")
    update = {"error": error, "targets": targets or _finish_targets(job, "failed"), "warnings": warnings or []}
    return _finish(job, "failed", now, update)


def give_up(job: Job, now: float) -> Job | None:
    """Finish the job because its executions died too often, whichever has it."""
    if job.is_finished:
        return None
    error = JobError(code="worker_lost", detail=f"Given up after {job.attempts} executions that died.")
    return _finish(job, "failed", now, {"error": error, "targets": _finish_targets(job, "failed")})


def move(job: Job, model: str, now: float) -> Job | None:
    """Let a waiting job be done by another version of its model."""
    if job.status != "queued" or job.version_named or job.model == model:
        return None
    return job.model_copy(update={"model": model, "changed_at": now})


def give_up_model(job: Job, now: float) -> Job | None:
    """Finish a waiting job because the version that it names is gone."""
    if job.status != "queued":
        return None
    error = JobError(code="model_unavailable", detail=f"No worker has {job.model} any more.")
    return _finish(job, "failed", now, {"error": error, "targets": _finish_targets(job, "failed")})


def request_cancel(job: Job, now: float) -> Job | None:
    """Cancel a waiting job at once; mark a running one, so that its worker stops."""
    if job.is_finished:
        return None
    if job.status == "queued":
        return cancel(job.model_copy(update={"cancel_requested_at": job.cancel_requested_at or now}), now)
    if job.cancel_requested_at is not None:
        return job.model_copy()
    return job.model_copy(update={"cancel_requested_at": now, "changed_at": now})


def cancel(job: Job, now: float) -> Job | None:
    """Finish the job as canceled; no worker has it."""
    return None if job.is_finished else _finish(job, "canceled", now, {"targets": _finish_targets(job, "canceled")})


def confirm_cancel(job: Job, execution: str, now: float) -> Job | None:
    """Finish the job as canceled after its execution has stopped on request."""
    if not _is_owned_by(job, execution):
        return _repeat(job, execution, "canceled")
    return cancel(job, now) if job.cancel_requested_at is not None else None


def requeue(job: Job, now: float, attempts: int, execution: str | None = None) -> Job | None:
    """Let the job wait again: its worker died (then the attempt counts), or `execution` releases it."""
    if job.is_finished or (execution is not None and not _is_owned_by(job, execution)):
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
    """Mark the output as expired; the status stays."""
    return job.model_copy(update={"expired": True, "changed_at": now}) if job.is_finished and not job.expired else None


def _is_owned_by(job: Job, execution: str) -> bool:
    return job.status == "running" and job.execution == execution


def _repeat(job: Job, execution: str, status: Status) -> Job | None:
    return job.model_copy() if job.status == status and job.execution == execution else None


def _finish(job: Job, status: Status, now: float, update: dict[str, Any]) -> Job:
    return job.model_copy(update={"status": status, "finished_at": now, "changed_at": now, **update})


def _finish_targets(job: Job, status: Status) -> list[TargetState]:
    """Return the targets; those without an outcome get the job's."""
    return [
        target if target.status in TERMINAL else target.model_copy(update={"status": status}) for target in job.targets
    ]
