"""Settings of jobs: models, workers, housekeeping and the fair queue."""

from pathlib import Path

from pydantic import BaseModel, Field, field_validator

from app.settings import rules


class JobSettings(BaseModel):
    """Fields of `Settings`."""

    # Models and workers
    model: str = Field(
        default="base",
        pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$",
        description="default model of a request, and the model that a worker loads",
    )
    model_descriptions: Path | None = Field(
        default=None,
        description="folder of descriptions of further models (NAME.json, made by `python -m models describe`), whose "
        "jobs are accepted before a worker has announced them; that of `base` is built in",
    )
    model_seconds: float = Field(
        default=3600.0,
        ge=0,
        description="seconds for which jobs wait for a version of a model that no worker has any more, and that is not "
        "configured: a rollout may bring it back; jobs that named it fail then",
    )
    worker_processes: int = Field(
        default=1,
        ge=1,
        le=64,
        description="worker processes that one `python -m worker` starts; several may share a GPU",
    )
    worker_threads: int = Field(default=0, ge=0, description="CPU threads of one worker; 0: its share of the cores")
    job_timeout: float = Field(
        default=1800.0,
        gt=0,
        description="seconds that one execution of a job may take, beside EARMARK_JOB_TIMEOUT_FACTOR",
    )
    # For a second of mono and one target `base` takes 0.02 s on two cores, `paper` 0.24 s (README, Figures).
    job_timeout_factor: float = Field(
        default=1.0,
        ge=0,
        description="further seconds that it may take for each second of its recording; one whose header does not tell "
        "its length counts as the longest that is allowed",
    )
    # Measured: 3.2 for the networks, less for a whole job (the model's card).
    high_quality_factor: float = Field(
        default=3.0,
        ge=1,
        description="how many times the seconds of a recording count if it is separated with `quality` high, for "
        "quotas, turns in the queue and EARMARK_JOB_TIMEOUT_FACTOR",
    )
    job_attempts: int = Field(
        default=5, ge=1, le=100, description="executions of a job that may die before the job fails as `worker_lost`"
    )
    heartbeat_seconds: float = Field(default=4.0, gt=0, description="seconds between heartbeats of a worker")
    heartbeat_timeout: float = Field(
        default=15.0,
        gt=0,
        validate_default=True,
        description="seconds without a heartbeat after which a worker counts as dead",
    )
    sweep_seconds: float = Field(default=5.0, gt=0, description="seconds between sweeps of housekeeping")
    lost_after: float = Field(
        default=10.0, ge=0, description="seconds that a job may be missing from the queue before it is requeued"
    )

    # Queue
    queue_jobs: int = Field(
        default=10_000, ge=1, description="waiting jobs of one model, above which new jobs are rejected"
    )
    queue_audio_seconds: float = Field(
        default=1_000_000.0,
        gt=0,
        description="charged audio seconds of the waiting jobs of one model, above which new jobs are rejected",
    )
    queue_share: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="share of both limits that the jobs of one API key may use; without keys it does not apply",
    )
    ready_jobs: int = Field(
        default=1, ge=1, description="jobs in the ready queue for each living worker; all others wait in the fair queue"
    )
    short_seconds: float = Field(
        default=60.0,
        ge=0,
        description="audio seconds, as charged to the quota, up to which a job counts as short: for workers started "
        "with --short, and to run beside another job",
    )

    # Rules beyond types
    _require_longer_than_heartbeats = field_validator("heartbeat_timeout")(rules.require_longer_than_heartbeats)
