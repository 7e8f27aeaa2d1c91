"""Rules for the values of settings beyond their types: a senseless one is refused with a sentence, at the start.

Each raises ValueError. Rules about two settings are those of the later one.
"""

import base64
import math
import re
from ipaddress import ip_network
from typing import Any
from urllib.parse import urlsplit

from pydantic import HttpUrl, SecretStr, ValidationInfo
from redis.connection import parse_url

from app.settings.environment import is_service_link

S3 = "s3://"
_BUCKET = r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]"
_PREFIX = r"([A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*)?/?"  # slash-separated words, like keys
_ORIGIN = r"https?://[a-z0-9.\-\[\]:]+"


def leave_out_service_links(values: Any) -> Any:
    """Ignore what Kubernetes sets for services: EARMARK_PORT=tcp://10.0.0.1:8000 for one named `earmark`."""
    if not isinstance(values, dict):
        return values
    return {name: value for name, value in values.items() if not is_service_link(name, value)}


def require_redis(value: str) -> str:
    """Require the URL of a Redis server."""
    parse_url(value)  # raises ValueError for other schemes
    path = urlsplit(value).path.strip("/")
    if not value.startswith("unix://") and path and not path.isdigit():
        raise ValueError("must end with the number of a database, as in redis://host:6379/0")
    return value


def require_store(value: str) -> str:
    """Require a folder, or a bucket and a prefix."""
    if value.startswith(S3):
        bucket, _, prefix = value.removeprefix(S3).partition("/")
        if not re.fullmatch(_BUCKET, bucket) or not re.fullmatch(_PREFIX, prefix):
            raise ValueError("must be s3://BUCKET or s3://BUCKET/PREFIX")
    elif re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", value):
        raise ValueError("must be a folder, or s3://BUCKET/PREFIX")
    elif value.startswith("~"):
        raise ValueError("must be a folder in full: nothing replaces the ~ here")
    return value


def require_s3(value: str | None, fields: ValidationInfo) -> str | None:
    """A folder has no endpoint: EARMARK_STORE is missing, or misses its s3://."""
    if value and not fields.data.get("store", S3).startswith(S3):
        raise ValueError("is for S3, but EARMARK_STORE is a folder")
    return value


def require_twin(value: SecretStr | None, fields: ValidationInfo) -> SecretStr | None:
    """Require both keys of S3 or none."""
    access_key = fields.data.get("store_access_key")
    is_half = bool(value and value.get_secret_value()) != bool(access_key and access_key.get_secret_value())
    if is_half and fields.data.get("store", "").startswith(S3):
        raise ValueError("EARMARK_STORE_ACCESS_KEY and EARMARK_STORE_SECRET_KEY must be set together")
    return value


def require_longer_than_heartbeats(value: float, fields: ValidationInfo) -> float:
    """Require that a worker may miss a heartbeat."""
    interval = fields.data.get("heartbeat_seconds", 0.0)
    if value <= interval:
        raise ValueError(f"must be longer than EARMARK_HEARTBEAT_SECONDS, {interval:g}")
    return value


def require_above_lowest(value: int, fields: ValidationInfo) -> int:
    """Require that there are rates from the lowest to the highest."""
    lowest = fields.data.get("lowest_rate", 0)
    if value < lowest:
        raise ValueError(f"must not be below EARMARK_LOWEST_RATE, {lowest}")
    return value


def require_own_port(value: int, fields: ValidationInfo) -> int:
    """Require another port than that of metrics."""
    if value and value == fields.data.get("metrics_port"):
        raise ValueError("must differ from EARMARK_METRICS_PORT: they are two servers")
    return value


def require_ports(value: str) -> str:
    """Require ports, separated by commas."""
    if any(not 0 < int(port) < 65536 for port in value.split(",")):
        raise ValueError("a port is 1 to 65535")
    return value


def require_room(value: int, fields: ValidationInfo) -> int:
    """What lasts long must leave room for what is brief."""
    wider = "connections" if fields.field_name == "requests_in_progress" else "requests_in_progress"
    if value >= fields.data.get(wider, math.inf):
        raise ValueError(f"must be less than EARMARK_{wider.upper()}, {fields.data[wider]}")
    return value


def require_room_for_a_file(value: int, fields: ValidationInfo) -> int:
    """Require that a key's share holds the largest file."""
    share, largest = fields.data.get("key_share", 1.0), fields.data.get("upload_bytes", 0)
    if math.floor(value * share) < largest:
        raise ValueError(f"a key's share of it, {share:g}, must hold an upload of EARMARK_UPLOAD_BYTES: {largest}")
    return value


def require_address(value: str | None) -> str | None:
    """Require a URL; return it without its last slash, and None for an empty one."""
    if value:
        HttpUrl(value)
    return value.rstrip("/") if value else None


def require_networks(value: str) -> str:
    """Require networks, separated by commas."""
    for text in value.split(",") if value else ():
        ip_network(text)
    return value


def require_origins(value: str) -> str:
    """Require origins, separated by commas; return them without spaces."""
    origins = [origin.strip() for origin in value.split(",") if origin.strip()]
    if invalid := [origin for origin in origins if origin != "*" and not re.fullmatch(_ORIGIN, origin)]:
        raise ValueError(f"{invalid[0]} is no origin such as https://example.org or http://localhost:3000")
    return ",".join(origins)


def require_signing_secret(value: SecretStr | None) -> SecretStr | None:
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
