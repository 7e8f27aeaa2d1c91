"""Settings of the front end and the workers, with units and defaults.

They are read from environment variables with the prefix `EARMARK_` (`EARMARK_REDIS_URL`, `EARMARK_STORE`, ...). A
program that starts others (`python -m app --embedded`) passes its settings on with `as_environment()`.
"""

import base64
import math
import re
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Literal, Self

import typer
from pydantic import Field, HttpUrl, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

MIB = 1024 * 1024
HOUR = 3600.0
_ORIGIN = r"https?://[a-z0-9.\-\[\]:]+"


class Settings(BaseSettings):
    """Settings of one deployment; frozen, so that they stay as they were validated."""

    model_config = SettingsConfigDict(env_prefix="EARMARK_", frozen=True, extra="ignore", hide_input_in_errors=True)

    # Paths and Redis
    home: Path = Field(
        default=Path(".earmark"), description="folder of the embedded service: data of the queue, store, logs"
    )
    redis_url: str = Field(
        default="redis://127.0.0.1:6379/0", repr=False, description="Redis or Valkey server, with persistence enabled"
    )
    redis_timeout: float = Field(
        default=5.0, gt=0, description="seconds to connect, and to wait for the reply to one command"
    )

    # Object store: a folder, or s3://BUCKET[/PREFIX]
    store: str = Field(
        default="", description="folder or s3://bucket/prefix; empty: the folder `store` under EARMARK_HOME"
    )
    store_endpoint: str | None = Field(default=None, description="URL of the S3 server; none: Amazon S3")
    store_public_endpoint: str | None = Field(
        default=None, description="URL of the same server as clients reach it, for presigned URLs"
    )
    store_region: str = Field(default="us-east-1", description="S3 region")
    store_access_key: SecretStr | None = Field(
        default=None, description="S3 access key; none: the credentials of the machine"
    )
    store_secret_key: SecretStr | None = Field(default=None, description="S3 secret key")
    store_timeout: float = Field(
        default=30.0, gt=0, description="seconds without data from the S3 server after which a call fails"
    )
    signed_url_seconds: float = Field(
        default=900.0, gt=0, le=604800, description="lifetime of a presigned stem URL, in seconds"
    )

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
    job_attempts: int = Field(
        default=5, ge=1, le=100, description="executions of a job that may die before the job fails as `worker_lost`"
    )
    heartbeat_seconds: float = Field(default=4.0, gt=0, description="seconds between heartbeats of a worker")
    heartbeat_timeout: float = Field(
        default=15.0, gt=0, description="seconds without a heartbeat after which a worker counts as dead"
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
        description="audio seconds, as charged to the quota, up to which a job counts as short, for workers started "
        "with --short",
    )

    # Observability
    log_format: Literal["text", "json"] = Field(default="text", description="format of log lines: plain text or JSON")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="lowest level that is logged"
    )
    metrics_host: str = Field(default="127.0.0.1", description="address that the metrics ports listen on")
    metrics_port: int = Field(
        default=0, ge=0, le=65535, description="separate port of the API for `/metrics`; 0: on the API's own port"
    )
    worker_metrics_port: int = Field(
        default=0,
        ge=0,
        le=65535,
        description="port of a worker for `/metrics`; its further processes use the next ports; 0: none",
    )
    housekeeping_metrics_port: int = Field(
        default=0, ge=0, le=65535, description="port of housekeeping for `/metrics`; 0: none"
    )

    # Limits
    # A WAV of 24 bits with as many samples as a recording may have takes 6.0e9 bytes; the next whole GiB.
    upload_bytes: int = Field(default=6 * 1024 * MIB, ge=1, description="maximum size of an uploaded file, in bytes")
    body_bytes: int = Field(
        default=MIB, ge=1024, description="maximum size of a JSON body, and of one form field, in bytes"
    )
    # The largest file at 7 Mbit/s.
    upload_timeout: float = Field(default=2 * HOUR, gt=0, description="seconds that one upload may take")
    upload_idle: float = Field(default=30.0, gt=0, description="seconds that a request body may pause")
    upload_rate: float = Field(
        default=1024.0,
        ge=0,
        description="minimum rate of a request body, in bytes per second, during each `upload_idle` seconds of waiting",
    )
    busy_upload_rate: float = Field(
        default=16384.0,
        ge=0,
        description="minimum rate of an upload, in bytes per second, while others find no room for theirs",
    )
    awaited_uploads: int = Field(
        default=1000, ge=1, description="presigned and resumable uploads of one key that may be pending at once"
    )
    recording_seconds: float = Field(default=6 * HOUR, gt=0, description="maximum duration of a recording, in seconds")
    example_seconds: float = Field(default=60.0, gt=0, description="maximum duration of an example, in seconds")
    channels: int = Field(default=8, ge=1, description="maximum number of channels")
    lowest_rate: int = Field(default=8000, ge=1, description="minimum sampling rate, in hertz")
    highest_rate: int = Field(default=192000, ge=1, description="maximum sampling rate, in hertz")
    # Six hours of stereo at 46 kHz: at 44.1 kHz a whole one fits.
    recording_samples: float = Field(
        default=2e9, gt=0, description="maximum size of a recording: channels x rate x seconds"
    )
    targets: int = Field(default=16, ge=1, description="maximum number of targets of one separation")
    # The largest recording with four targets and a residual as FLAC: 40.0e9 bytes of scratch, 30.3e9 of the store.
    scratch_bytes: int = Field(
        default=38 * 1024 * MIB,
        ge=MIB,
        description="maximum scratch that a job may need on its worker's disk (see Size of a separation), in bytes",
    )
    stored_bytes: int = Field(
        default=38 * 1024 * MIB,
        ge=MIB,
        description="maximum size of a separation's files in the store (see Size of a separation), in bytes",
    )
    examples: int = Field(default=20, ge=1, description="maximum number of examples, and of spans, of one target")
    detection_events: int = Field(
        default=2000,
        ge=1,
        description="maximum number of events in a detection; those with the highest scores are kept",
    )

    # Budgets of what Redis holds
    redis_share: float = Field(
        default=0.8,
        gt=0,
        le=1,
        description="share of the Redis server's `maxmemory` above which uploads, jobs and other new records are "
        "refused; the rest is for those that exist",
    )
    kept_jobs: int = Field(
        default=20_000,
        ge=1,
        description="jobs and saved queries of one API key that are kept at once; without keys it does not apply",
    )
    kept_uploads: int = Field(
        default=20_000,
        ge=1,
        description="uploads of one API key that are kept at once; without keys it does not apply",
    )

    # Budgets of one API process
    key_share: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="share of each budget of an API process that the requests of one API key may use; without keys it "
        "does not apply",
    )
    connections: int = Field(
        default=2048,
        ge=4,
        description="connections whose requests one API process answers; `/livez` and `/readyz` are answered on "
        "further ones too",
    )
    requests_in_progress: int = Field(
        default=1536, ge=2, description="requests that one API process answers at once, fewer than its connections"
    )
    event_streams: int = Field(
        default=1024,
        ge=1,
        description="event streams and long polls among them, fewer than these",
    )
    upload_slots: int = Field(
        default=32,
        ge=1,
        description="uploads in flight; with S3, each holds up to 25 MiB in memory",
    )
    upload_room: int = Field(
        default=16 * 1024 * MIB,
        ge=1,
        validate_default=True,
        description="bytes of the uploads in flight, and of the copies of files that are drawn; a key's "
        "share must hold a file of EARMARK_UPLOAD_BYTES",
    )
    fetch_slots: int = Field(default=16, ge=1, description="fetches of URLs at once")
    probe_slots: int = Field(default=4, ge=1, description="uploads whose headers are read at once, by a process each")
    waveform_slots: int = Field(
        default=2, ge=1, description="recordings that are decoded for their waveform at once, by a process each"
    )
    section_slots: int = Field(
        default=3,
        ge=1,
        description="sections of recordings that are decoded at once, for a spectrogram or for peaks, by a process "
        "each",
    )
    local_copies: int = Field(
        default=2048 * MIB,
        ge=0,
        description="bytes of the copies of files in S3 that one API process keeps on disk for a minute after it has "
        "drawn them",
    )
    drawing_cache: int = Field(
        default=64 * MIB,
        ge=0,
        description="bytes of spectrograms and waveforms that one API process keeps in memory",
    )
    budget_patience: float = Field(
        default=30.0,
        ge=0,
        description="seconds that a request waits for an upload, a fetch, a probe, a waveform or a section before it "
        "is refused",
    )

    # Outbound requests to URLs that clients send: recordings, webhooks
    outside_ports: str = Field(
        default="80,443",
        pattern=r"^\d{1,5}(,\d{1,5})*$",
        description="ports that may be requested, separated by commas",
    )
    outside_networks: str = Field(
        default="", description="private networks that may be requested, separated by commas (10.1.0.0/16,fd00:1::/64)"
    )
    # The largest file at 10 MB/s.
    fetch_timeout: float = Field(
        default=600.0,
        gt=0,
        description="seconds that fetching one recording may take, from a URL, or from the store when a presigned "
        "or resumable upload is completed",
    )

    # Authentication
    auth: Literal["on", "off"] = Field(default="on", description="API keys: on, or off (default with --embedded)")
    open_to_all: bool = Field(
        default=False, description="without API keys, allow listening on addresses that other machines can reach"
    )
    open_rate: int = Field(
        default=0, ge=0, description="without API keys, requests per minute of all clients together; 0: no limit"
    )
    open_audio_seconds: int = Field(
        default=0, ge=0, description="without API keys, audio seconds per day of all clients together; 0: no limit"
    )
    url_secret: SecretStr | None = Field(
        default=None,
        description="secret that signs the URLs in responses; none: a secret generated once and kept in Redis",
    )
    url_seconds: float = Field(
        default=HOUR,
        ge=1,
        description="minimum lifetime of a signed URL in a response, in seconds; the maximum is twice as long",
    )
    idempotency_seconds: float = Field(
        default=24 * HOUR, gt=0, description="seconds that a response is kept for a repeated `Idempotency-Key`"
    )
    idempotency_bytes: int = Field(
        default=32 * MIB,
        ge=1,
        description="bytes of the responses kept for the `Idempotency-Key`s of one API key; refusals may use half",
    )
    idempotency_refusal_bytes: int = Field(
        default=64 * 1024,
        ge=0,
        description="maximum size of a refusal (4xx) that is kept for a repeated `Idempotency-Key`, in bytes",
    )
    idempotency_lease: float = Field(
        default=30.0,
        gt=0,
        description="seconds after which a request of a dead process no longer blocks its repetition",
    )
    cors_origins: str = Field(
        default="", description="origins whose pages may send requests from a browser, separated by commas; `*`: any"
    )

    # Webhooks
    webhook_secret: SecretStr | None = Field(
        default=None, description="secret that signs webhooks when API keys are off: whsec_ and base64"
    )
    webhook_timeout: float = Field(
        default=10.0, gt=0, description="seconds that one delivery attempt of a webhook may take"
    )

    # Retention
    upload_retention: float = Field(
        default=24 * HOUR, gt=0, description="seconds that an upload is kept, and that a resumable one may take"
    )
    stem_retention: float = Field(
        default=72 * HOUR, gt=0, description="seconds that stems are kept after their job has finished"
    )
    record_retention: float = Field(
        default=30 * 24 * HOUR, gt=0, description="seconds that a record is kept after its stems"
    )

    # Server
    host: str = Field(default="127.0.0.1", description="address that the API listens on")
    port: int = Field(default=8000, ge=0, le=65535, description="port that the API listens on; 0: a free one")
    longest_wait: int = Field(default=60, ge=0, description="maximum wait of a long poll (`Prefer: wait`), in seconds")
    poll_seconds: int = Field(default=1, ge=1, description="seconds between polls that clients are asked to wait")

    @field_validator("requests_in_progress", "event_streams")
    @classmethod
    def _leaves_room(cls, value: int, fields: ValidationInfo) -> int:
        """What lasts long must leave room for what is brief."""
        wider = "connections" if fields.field_name == "requests_in_progress" else "requests_in_progress"
        if value >= fields.data.get(wider, math.inf):
            raise ValueError(f"must be less than EARMARK_{wider.upper()}, {fields.data[wider]}")
        return value

    @field_validator("upload_room")
    @classmethod
    def _holds_a_file(cls, value: int, fields: ValidationInfo) -> int:
        share, largest = fields.data.get("key_share", 1.0), fields.data.get("upload_bytes", 0)
        if math.floor(value * share) < largest:
            raise ValueError(f"a key's share of it, {share:g}, must hold an upload of EARMARK_UPLOAD_BYTES: {largest}")
        return value

    @field_validator("store_endpoint", "store_public_endpoint")
    @classmethod
    def _is_address(cls, value: str | None) -> str | None:
        if value:
            HttpUrl(value)
        return value.rstrip("/") if value else None

    @field_validator("outside_networks")
    @classmethod
    def _are_networks(cls, value: str) -> str:
        for text in value.split(",") if value else ():
            ip_network(text)
        return value

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, value: str) -> str:
        origins = [origin.strip() for origin in value.split(",") if origin.strip()]
        if invalid := [origin for origin in origins if origin != "*" and not re.fullmatch(_ORIGIN, origin)]:
            raise ValueError(f"{invalid[0]} is no origin such as https://example.org or http://localhost:3000")
        return ",".join(origins)

    @field_validator("webhook_secret")
    @classmethod
    def _is_signing_secret(cls, value: SecretStr | None) -> SecretStr | None:
        """Standard Webhooks requires 24 to 64 random bytes."""
        if value is not None:
            before, prefix, encoded = value.get_secret_value().rpartition("whsec_")
            try:
                length = len(base64.b64decode(encoded, validate=True)) if prefix and not before else 0
            except ValueError:
                length = 0
            if not 24 <= length <= 64:
                raise ValueError("must be whsec_ and the base64 of 24 to 64 random bytes")
        return value

    @classmethod
    def load_or_exit(cls, **options: Any) -> Self:
        """Return the settings of the environment, overridden by a program's options that are not None.

        Print what is invalid and exit with status 2 (`worker.pool.EXIT_UNUSABLE` for workers) where a value is.
        """
        try:
            return cls(**{name: value for name, value in options.items() if value is not None})
        except ValidationError as error:
            for invalid in error.errors():
                typer.secho(f"EARMARK_{str(invalid['loc'][0]).upper()}: {invalid['msg']}", fg="red", err=True)
            raise SystemExit(2) from None

    @property
    def store_location(self) -> str:
        """The absolute path of the folder, or the s3:// URL."""
        if self.store.startswith("s3://"):
            return self.store
        return str((Path(self.store) if self.store else self.home / "store").absolute())

    @property
    def execution_seconds(self) -> float:
        """After so many seconds an execution of any job is dead for certain: its worker's timeout has killed it."""
        return 2 * self.execution_timeout(None) + 600

    def execution_timeout(self, audio_seconds: float | None) -> float:
        """Return the seconds that one execution of a job may take, by the length of its recording as far as it is
        known."""
        longest = self.recording_seconds
        seconds = longest if audio_seconds is None else min(audio_seconds, longest)
        return self.job_timeout + self.job_timeout_factor * seconds

    def as_environment(self) -> dict[str, str]:
        """Return the settings that were set explicitly, as environment variables for a program that this one starts."""
        variables = {}
        for name in self.model_fields_set:
            value = getattr(self, name)
            if value is not None:
                text = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
                variables[f"EARMARK_{name.upper()}"] = text
        return variables
