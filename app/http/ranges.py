"""Responses with the bytes of a stored object: all of them, a range (RFC 9110, section 14), or 304."""

import re
from collections.abc import AsyncIterator
from urllib.parse import quote

from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from app.errors import RangeNotSatisfiable
from app.http.conditional import matches_etag
from app.storage import Storage

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.IGNORECASE)


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Return the requested range as (start, end), end exclusive; None for the whole object.

    Several ranges, other units and malformed headers are ignored, as the standard allows. Raises `RangeNotSatisfiable`.
    """
    match = _RANGE.fullmatch(header.strip().replace(" ", "")) if header else None
    if match is None:
        return None
    first, last = match.groups()
    if not first and not last:
        return None
    if not first:
        if int(last) == 0 or size == 0:
            raise RangeNotSatisfiable(size)
        return max(0, size - int(last)), size
    if last and int(last) < int(first):
        return None
    if int(first) >= size:
        raise RangeNotSatisfiable(size)
    return int(first), min(int(last) + 1, size) if last else size


def attachment(filename: str) -> str:
    """Return the `Content-Disposition` of a download under this name (RFC 6266).

    `filename` is for clients that know nothing else, such as `curl -OJ`; in it, what they may misread becomes `_`.
    """
    plain = re.sub(r'[^ -~]|["%\\]', "_", filename)
    exact = "" if plain == filename else f"; filename*=UTF-8''{quote(filename, safe='')}"
    return f'attachment; filename="{plain}"{exact}'


async def object_response(
    request: Request,
    storage: Storage,
    key: str,
    *,
    size: int,
    sha256: str,
    content_type: str,
    filename: str | None = None,
) -> Response:
    """Return the response to GET or HEAD of an object, with Range, If-Range and If-None-Match.

    `filename` makes it a download. Raises `NotFound` if the store lacks the object, before the response begins.
    """
    etag = f'"{sha256}"'
    headers = {"Accept-Ranges": "bytes", "ETag": etag, "Cache-Control": "private, no-cache"}
    if filename is not None:
        headers["Content-Disposition"] = attachment(filename)
    if matches_etag(request, etag):
        return Response(status_code=304, headers=headers)
    header = request.headers.get("range") if request.headers.get("if-range", etag) == etag else None
    byte_range = parse_range(header, size)
    start, end = byte_range or (0, size)
    headers["Content-Length"] = str(end - start)
    if byte_range:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    status = 206 if byte_range else 200
    if request.method == "HEAD" or end == start:
        return Response(status_code=status, headers=headers, media_type=content_type)
    stream: AsyncIterator[bytes] = await storage.open_range(key, start, end)
    return StreamingResponse(stream, status_code=status, headers=headers, media_type=content_type)
