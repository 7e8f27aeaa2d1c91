"""Lifecycle rules of an S3 bucket: a second line behind housekeeping, which deletes everything that expires itself.

The rules delete what is older than its retention with a margin, and unfinished multipart uploads, which killed writers
leave behind and no listing shows. What has no expiry, saved queries, is left out. obstore cannot set rules, so the
request is made and signed here (AWS Signature Version 4).
"""

import base64
import hashlib
import hmac
import math
from datetime import UTC, datetime
from urllib.parse import quote, urlsplit
from xml.sax.saxutils import escape

import httpx

from app.errors import StoreUnavailable
from app.jobs.kinds import KINDS
from app.settings import Settings

_DAY = 86400.0
_MARGIN = 7  # days that jobs may wait and run: objects are written before the end from which retention counts
_HEADERS = "content-md5;host;x-amz-content-sha256;x-amz-date"  # that are signed


def days_by_prefix(settings: Settings) -> dict[str, int]:
    """Return after how many days the rules delete objects with a prefix of the keys that housekeeping knows."""
    uploads = settings.upload_retention + 2 * settings.upload_timeout
    outputs, records = settings.stem_retention, settings.stem_retention + settings.record_retention
    seconds = {"audio/": uploads, "outlines/": uploads, "incoming/": uploads}
    for kind in KINDS.values():
        if not kind.kept:
            seconds |= {f"{kind.folder}/": outputs, f"records/{kind.prefix}_": records}
    return {prefix: math.ceil(each / _DAY) + _MARGIN for prefix, each in seconds.items()}


def document(settings: Settings) -> str:
    """Return the rules as S3's XML."""
    bucket_prefix = f"{settings.bucket.prefix}/".lstrip("/") if settings.bucket is not None else ""
    rules = [_rule("unfinished", bucket_prefix, "AbortIncompleteMultipartUpload", "DaysAfterInitiation", 2)]
    for prefix, days in days_by_prefix(settings).items():
        name = prefix.strip("/_").replace("/", "-")
        rules.append(_rule(name, bucket_prefix + prefix, "Expiration", "Days", days))
    namespace = "http://s3.amazonaws.com/doc/2006-03-01/"
    return f'<LifecycleConfiguration xmlns="{namespace}">{"".join(rules)}</LifecycleConfiguration>'


def _rule(name: str, prefix: str, action: str, unit: str, days: int) -> str:
    return (
        f"<Rule><ID>earmark-{name}</ID><Filter><Prefix>{escape(prefix)}</Prefix></Filter><Status>Enabled</Status>"
        f"<{action}><{unit}>{days}</{unit}></{action}></Rule>"
    )


def request(settings: Settings, method: str, body: bytes = b"") -> httpx.Response:
    """Read (GET) or replace (PUT) the rules of the store's bucket; return the response.

    Raises `StoreUnavailable`, also where the settings have no keys of the store.
    """
    access, secret = settings.store_access_key, settings.store_secret_key
    if settings.bucket is None or not (access and secret):
        raise StoreUnavailable("It needs a store on S3, with EARMARK_STORE_ACCESS_KEY and EARMARK_STORE_SECRET_KEY.")
    endpoint = settings.store_endpoint or f"https://s3.{settings.store_region}.amazonaws.com"
    path = f"{urlsplit(endpoint).path}/{quote(settings.bucket.name)}"
    time = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    headers = {
        "content-md5": base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode(),
        "host": urlsplit(endpoint).netloc,
        "x-amz-content-sha256": hashlib.sha256(body).hexdigest(),
        "x-amz-date": time,
    }
    scope = f"{time[:8]}/{settings.store_region}/s3/aws4_request"
    signed = "".join(f"{name}:{value}\n" for name, value in headers.items())
    canonical = f"{method}\n{path}\nlifecycle=\n{signed}\n{_HEADERS}\n{headers['x-amz-content-sha256']}"
    to_sign = f"AWS4-HMAC-SHA256\n{time}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = f"AWS4{secret.get_secret_value()}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    credential = f"Credential={access.get_secret_value()}/{scope}, SignedHeaders={_HEADERS}"
    signature = hmac.new(key, to_sign.encode(), "sha256").hexdigest()
    headers["authorization"] = f"AWS4-HMAC-SHA256 {credential}, Signature={signature}"
    parts = urlsplit(endpoint)
    url = f"{parts.scheme}://{parts.netloc}{path}?lifecycle"
    try:
        response = httpx.request(method, url, content=body, headers=headers, timeout=settings.store_timeout)
    except httpx.TransportError as error:
        raise StoreUnavailable(f"It does not answer: {error}") from error
    if not response.is_success:
        raise StoreUnavailable(f"It refuses, with status {response.status_code}.")
    return response
