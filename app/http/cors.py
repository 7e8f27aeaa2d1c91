"""Requests from pages of other origins (CORS, by the Fetch standard); none are allowed unless the settings say so."""

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from app.settings import Settings

_SENT = ("Authorization", "Content-Type", "Idempotency-Key", "If-None-Match", "Last-Event-ID", "Prefer", "Range")
_READ = (
    *("Accept-Ranges", "Content-Disposition", "Content-Range", "ETag", "Idempotent-Replayed", "Location"),
    *("Preference-Applied", "RateLimit", "RateLimit-Policy", "Retry-After", "WWW-Authenticate", "X-Request-Id"),
)
_REMEMBERED = 600  # seconds a browser need not ask again whether it may ask


def install(app: FastAPI, settings: Settings) -> None:
    """Let pages of the origins that the settings name ask, outside of the keys' layer: preflights have no key."""
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins.split(","),
            allow_methods=["GET", "HEAD", "POST", "DELETE"],
            allow_headers=[*_SENT, "X-Request-Id"],
            expose_headers=_READ,
            max_age=_REMEMBERED,
        )
