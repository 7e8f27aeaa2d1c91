"""Cross-origin requests from web pages (CORS, by the Fetch standard); allowed only for origins in the settings."""

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from app.settings import Settings

_REQUEST_HEADERS = (
    "Authorization",
    "Content-Type",
    "Idempotency-Key",
    "If-None-Match",
    "Last-Event-ID",
    "Prefer",
    "Range",
    *("Tus-Resumable", "Upload-Length", "Upload-Metadata", "Upload-Offset"),
)
_RESPONSE_HEADERS = (
    *("Accept-Ranges", "Content-Disposition", "Content-Range", "ETag", "Idempotent-Replayed", "Location"),
    *("Preference-Applied", "RateLimit", "RateLimit-Policy", "Retry-After", "WWW-Authenticate", "X-Request-Id"),
    *("Tus-Extension", "Tus-Max-Size", "Tus-Resumable", "Tus-Version"),
    *("Upload-Expires", "Upload-Length", "Upload-Metadata", "Upload-Offset"),
)
_PREFLIGHT_SECONDS = 600  # for which browsers cache the answer to a preflight request


def install(app: FastAPI, settings: Settings) -> None:
    """Add the CORS middleware for the origins in the settings.

    It belongs outside of the authentication middleware, since preflight requests carry no key.
    """
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins.split(","),
            allow_methods=["GET", "HEAD", "POST", "PATCH", "DELETE"],
            allow_headers=[*_REQUEST_HEADERS, "X-Request-Id"],
            expose_headers=_RESPONSE_HEADERS,
            max_age=_PREFLIGHT_SECONDS,
        )
