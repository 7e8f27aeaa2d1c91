"""Conditional requests (RFC 9110, section 13)."""

from fastapi import Request


def matches_etag(request: Request, etag: str) -> bool:
    """Whether `If-None-Match` names this ETag, also as a weak one (`W/"..."`): proxies that compress make it so."""
    tags = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    return etag in tags or tags == ["*"]
