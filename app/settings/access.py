"""Settings of access: outbound requests, API keys, signed URLs, `Idempotency-Key`, CORS and webhooks."""

from typing import Literal

from pydantic import BaseModel, Field, SecretStr, field_validator

from app.settings import rules
from app.settings.units import HOUR, MIB


class AccessSettings(BaseModel):
    """Fields of `Settings`."""

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
    wrong_keys: int = Field(
        default=60,
        ge=0,
        description="wrong keys and signed URLs that one address may send each API process in a minute before it gets "
        "429; valid keys from there are not affected; 0: no limit",
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

    # Rules beyond types
    _require_ports = field_validator("outside_ports")(rules.require_ports)
    _require_outside_networks = field_validator("outside_networks")(rules.require_networks)
    _require_origins = field_validator("cors_origins")(rules.require_origins)
    _require_signing_secret = field_validator("webhook_secret")(rules.require_signing_secret)
