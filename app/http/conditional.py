"""Conditional requests (RFC 9110, section 13): what a client has already need not be sent again."""

from fastapi import Request


def matches_etag(request: Request, etag: str) -> bool:
    """Whether `If-None-Match` names this ETag, which proxies that compress may have made a weak one (`W/"..."`)."""
    tags = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    return etag in tags or tags == ["*"]
