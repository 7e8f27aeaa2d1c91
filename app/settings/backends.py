"""Settings of the backends: Redis, the object store and the folder of the embedded service."""

from pathlib import Path

from pydantic import BaseModel, Field, SecretStr, field_validator

from app.settings import rules


class BackendSettings(BaseModel):
    """Fields of `Settings`."""

    # Paths and Redis
    home: Path = Field(
        default=Path(".earmark"), description="folder of the embedded service: data of the queue, store, logs"
    )
    redis_url: str = Field(
        default="redis://127.0.0.1:6379/0",
        repr=False,
        description="Redis or Valkey server, with persistence enabled: redis://:PASSWORD@HOST:6379/0; by TLS, "
        "rediss://, and ?ssl_ca_certs=FILE for an authority of your own",
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
    store_secret_key: SecretStr | None = Field(default=None, validate_default=True, description="S3 secret key")
    store_timeout: float = Field(
        default=30.0, gt=0, description="seconds without data from the S3 server after which a call fails"
    )
    signed_url_seconds: float = Field(
        default=900.0, gt=0, le=604800, description="lifetime of a presigned stem URL, in seconds"
    )

    # Rules beyond types
    _require_redis = field_validator("redis_url")(rules.require_redis)
    _require_store = field_validator("store")(rules.require_store)
    _require_s3 = field_validator("store_endpoint", "store_public_endpoint")(rules.require_s3)
    _require_address = field_validator("store_endpoint", "store_public_endpoint")(rules.require_address)
    _require_twin = field_validator("store_secret_key")(rules.require_twin)
