"""Settings of the programs as servers: addresses, polls, logs and metrics."""

from typing import Literal

from pydantic import BaseModel, Field, field_validator

from app.settings import rules


class ServerSettings(BaseModel):
    """Fields of `Settings`."""

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

    # Server
    host: str = Field(default="127.0.0.1", description="address that the API listens on")
    port: int = Field(
        default=8000, ge=0, le=65535, validate_default=True, description="port that the API listens on; 0: a free one"
    )
    proxy_networks: str = Field(
        default="127.0.0.0/8,::1/128",
        description="networks of the proxies before the API, separated by commas, whose `X-Forwarded-For` tells the "
        "addresses of clients",
    )
    longest_wait: int = Field(default=60, ge=0, description="maximum wait of a long poll (`Prefer: wait`), in seconds")
    poll_seconds: int = Field(default=1, ge=1, description="seconds between polls that clients are asked to wait")

    # Rules beyond types
    _require_own_port = field_validator("port")(rules.require_own_port)
    _require_proxy_networks = field_validator("proxy_networks")(rules.require_networks)
