"""Every knob of the front end and the workers, with its unit and default.

Read from the environment with the prefix `EARMARK_` (`EARMARK_REDIS_URL`, `EARMARK_STORE`, ...). A program that
starts others (`python -m app --embedded`) hands its choices down with `as_environment()`.
"""

import base64
import re
from ipaddress import ip_network
from pathlib import Path
from typing import Literal

from pydantic import Field, HttpUrl, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

MIB = 1024 * 1024
HOUR = 3600.0
_ORIGIN = r"https?://[a-z0-9.\-\[\]:]+"


class Settings(BaseSettings):
    """The choices of one deployment; frozen, so that what was checked at start stays true."""

    model_config = SettingsConfigDict(env_prefix="EARMARK_", frozen=True, extra="ignore", hide_input_in_errors=True)

    # Where things are
    home: Path = Field(
        default=Path(".earmark"), description="folder of the embedded service: queue's data, store, logs"
    )
    redis_url: str = Field(
        default="redis://127.0.0.1:6379/0", repr=False, description="Redis or Valkey, with persistence switched on"
    )
    redis_timeout: float = Field(default=5.0, gt=0, description="seconds to connect, and to answer one command")

    # The object store: a folder, or s3://BUCKET[/PREFIX]
    store: str = Field(default="", description="folder or s3://bucket/prefix; empty: the folder `store` under home")
    store_endpoint: str | None = Field(default=None, description="S3 server's address; none: Amazon's")
    store_public_endpoint: str | None = Field(
        default=None, description="the same server as clients see it, for signed URLs"
    )
    store_region: str = Field(default="us-east-1", description="S3 region")
    store_access_key: SecretStr | None = Field(
        default=None, description="S3 access key; none: the machine's own credentials"
    )
    store_secret_key: SecretStr | None = Field(default=None, description="S3 secret key")
    store_timeout: float = Field(
        default=30.0, gt=0, description="seconds an S3 server may be silent before a call fails"
    )
    signed_url_seconds: float = Field(default=900.0, gt=0, le=604800, description="seconds a signed stem URL lives")

    # Models and workers
    model: str = Field(
        default="base", pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$", description="the model asked for by default"
    )
    worker_processes: int = Field(
        default=1, ge=1, le=64, description="workers that one `python -m worker` starts: several may share a GPU"
    )
    worker_threads: int = Field(
        default=0, ge=0, description="threads one worker computes with on a CPU; 0: its part of the cores"
    )
    job_timeout: float = Field(default=1800.0, gt=0, description="seconds one execution of a job may take")
    job_attempts: int = Field(
        default=5, ge=1, le=100, description="executions of one job that may die before it is given up"
    )
    heartbeat_seconds: float = Field(default=4.0, gt=0, description="seconds between a worker's heartbeats")
    heartbeat_timeout: float = Field(default=15.0, gt=0, description="seconds without one after which a worker is dead")
    sweep_seconds: float = Field(default=5.0, gt=0, description="seconds between housekeeping's rounds")
    lost_after: float = Field(
        default=10.0, ge=0, description="seconds a job may be unknown to the queue before it is put back"
    )
    queue_jobs: int = Field(
        default=10_000, ge=1, description="waiting jobs of one model above which new ones are refused"
    )
    queue_audio_seconds: float = Field(
        default=1_000_000.0, gt=0, description="seconds of their audio above which new ones are refused"
    )
    queue_share: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="part of both that one key's jobs may be; without keys there is no such limit",
    )
    ready_jobs: int = Field(
        default=1, ge=1, description="jobs that lie ready for each living worker; the others wait for a fair turn"
    )
    short_seconds: float = Field(
        default=60.0, ge=0, description="seconds of audio up to which a job is one for workers started with --short"
    )

    # Seen from outside
    log_format: Literal["text", "json"] = Field(default="text", description="log lines for people, or as JSON")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="the least grave lines that are logged"
    )
    metrics_host: str = Field(default="127.0.0.1", description="address of the metrics ports below")
    metrics_port: int = Field(
        default=0, ge=0, le=65535, description="port of the API's own for `/metrics`; 0: on the API's port"
    )
    worker_metrics_port: int = Field(
        default=0,
        ge=0,
        le=65535,
        description="port where a worker serves `/metrics`, the next ones for its other processes; 0: none",
    )
    housekeeping_metrics_port: int = Field(
        default=0, ge=0, le=65535, description="port where housekeeping serves `/metrics`; 0: none"
    )

    # Limits on what is sent
    upload_bytes: int = Field(default=512 * MIB, ge=1, description="bytes of one uploaded file")
    body_bytes: int = Field(default=MIB, ge=1024, description="bytes of a JSON body, and of one field of a form")
    upload_timeout: float = Field(default=HOUR, gt=0, description="seconds one upload may take")
    upload_idle: float = Field(default=30.0, gt=0, description="seconds a body may send nothing")
    upload_rate: float = Field(
        default=1024.0, ge=0, description="bytes a second that a body must bring on average after `upload_idle`"
    )
    awaited_uploads: int = Field(
        default=1000, ge=1, description="direct uploads of one key that may be signed and not completed, at once"
    )
    recording_seconds: float = Field(default=2 * HOUR, gt=0, description="seconds of one recording")
    example_seconds: float = Field(default=60.0, gt=0, description="seconds of one example")
    channels: int = Field(default=8, ge=1, description="channels of one recording")
    lowest_rate: int = Field(default=8000, ge=1, description="hertz")
    highest_rate: int = Field(default=192000, ge=1, description="hertz")
    recording_samples: float = Field(default=1.5e9, gt=0, description="channels x rate x seconds of one recording")
    targets: int = Field(default=16, ge=1, description="targets of one separation")
    examples: int = Field(default=20, ge=1, description="examples of one target; its spans too")
    detection_events: int = Field(default=2000, ge=1, description="events that one detection tells, the surest")

    # Requests to addresses that clients name: recordings by URL, webhooks
    outside_ports: str = Field(
        default="80,443", pattern=r"^\d{1,5}(,\d{1,5})*$", description="ports that may be asked, with commas between"
    )
    outside_networks: str = Field(
        default="", description="networks that may be asked though they are not public (10.1.0.0/16,fd00:1::/64)"
    )
    fetch_timeout: float = Field(default=120.0, gt=0, description="seconds that fetching one recording may take")

    # Who may ask
    auth: Literal["on", "off"] = Field(default="on", description="API keys: on, or off (default with --embedded)")
    open_to_all: bool = Field(
        default=False, description="with keys off, listen on addresses that other machines reach, too"
    )
    open_rate: int = Field(default=0, ge=0, description="with keys off, requests a minute of everybody; 0: no limit")
    open_audio_seconds: int = Field(
        default=0, ge=0, description="with keys off, audio seconds a day of everybody; 0: no limit"
    )
    url_secret: SecretStr | None = Field(
        default=None, description="what signs the addresses in answers; none: a secret made once and kept in Redis"
    )
    url_seconds: float = Field(
        default=HOUR, ge=1, description="seconds a signed address in an answer lives at least; at most twice as long"
    )
    idempotency_seconds: float = Field(
        default=24 * HOUR, gt=0, description="seconds an answer is kept for a repeated `Idempotency-Key`"
    )
    idempotency_lease: float = Field(
        default=30.0,
        gt=0,
        description="seconds until a request of a dead process no longer blocks its repetition",
    )
    cors_origins: str = Field(
        default="", description="origins of pages that may ask from a browser, with commas between; `*`: any"
    )

    webhook_secret: SecretStr | None = Field(
        default=None, description="what webhooks are signed with where keys are switched off: whsec_ and base64"
    )
    webhook_timeout: float = Field(default=10.0, gt=0, description="seconds one try to deliver a webhook may take")

    # Retention
    upload_retention: float = Field(default=24 * HOUR, gt=0, description="seconds an upload is kept")
    stem_retention: float = Field(default=72 * HOUR, gt=0, description="seconds stems are kept once a job is over")
    record_retention: float = Field(default=30 * 24 * HOUR, gt=0, description="seconds a record outlives its stems")

    # The server
    host: str = Field(default="127.0.0.1", description="address that the API listens on")
    port: int = Field(default=8000, ge=0, le=65535, description="port that the API listens on; 0: a free one")
    longest_wait: int = Field(default=60, ge=0, description="seconds that `Prefer: wait` may hold an answer back")
    poll_seconds: int = Field(default=1, ge=1, description="seconds a client is told to wait between polls")

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
        if wrong := [origin for origin in origins if origin != "*" and not re.fullmatch(_ORIGIN, origin)]:
            raise ValueError(f"{wrong[0]} is no origin such as https://example.org or http://localhost:3000")
        return ",".join(origins)

    @field_validator("webhook_secret")
    @classmethod
    def _signs(cls, value: SecretStr | None) -> SecretStr | None:
        """Standard Webhooks wants 24 to 64 random bytes."""
        if value is not None:
            prefix, found, encoded = value.get_secret_value().rpartition("whsec_")
            try:
                length = len(base64.b64decode(encoded, validate=True)) if found and not prefix else 0
            except ValueError:
                length = 0
            if not 24 <= length <= 64:
                raise ValueError("must be whsec_ and the base64 of 24 to 64 random bytes")
        return value

    @property
    def store_location(self) -> str:
        """The folder (absolute) or the s3:// address in use."""
        if self.store.startswith("s3://"):
            return self.store
        return str((Path(self.store) if self.store else self.home / "store").absolute())

    def as_environment(self) -> dict[str, str]:
        """The settings that differ from their defaults, as variables for a program started by this one."""
        variables = {}
        for name in self.model_fields_set:
            value = getattr(self, name)
            if value is not None:
                text = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
                variables[f"EARMARK_{name.upper()}"] = text
        return variables
