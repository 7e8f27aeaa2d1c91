"""Request bodies as streams, within limits of size and time; only small ones are held in memory."""

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Awaitable
from json import JSONDecodeError
from typing import Any, TypeVar

import anyio
from fastapi import Request
from starlette.requests import ClientDisconnect

from app.errors import ClientGone, MediaTypeUnsupported, RequestInvalid, UploadTimeout, UploadTooLarge
from app.http.problems import field_error
from app.settings import Settings

Result = TypeVar("Result")


class ArrivalRate:
    """Rate at which bytes arrive, in windows of so many seconds of waiting, so that a fast start excuses no stall."""

    def __init__(self, window: float) -> None:
        self._window = window
        self._waiting = 0.0
        self._size = 0

    def add(self, size: int, waiting: float) -> float:
        """Add bytes, and the seconds of waiting for them.

        Return the rate of the window that ends here, in bytes per second, or infinity while one continues.
        """
        self._size += size
        self._waiting += waiting
        if self._waiting <= self._window:
            return math.inf
        rate = self._size / self._waiting
        self._size, self._waiting = 0, 0.0
        return rate


async def chunks(
    request: Request, settings: Settings, limit: int, seconds: float | None = None
) -> AsyncIterator[bytes]:
    """Return the chunks of the body as they arrive.

    Raises `UploadTooLarge` when more than `limit` bytes are announced or received; `UploadTimeout` when nothing arrives
    for `upload_idle` seconds, when the rate is below `upload_rate` during so much waiting, or when the body takes
    longer than `seconds` (default: `upload_timeout`); `ClientGone` when the client disconnects.
    """
    content_length = request.headers.get("content-length", "")
    if content_length.isascii() and content_length.isdigit() and int(content_length[:19]) > limit:
        raise UploadTooLarge(limit, "The body")
    deadline = time.monotonic() + (settings.upload_timeout if seconds is None else seconds)
    arrival = ArrivalRate(settings.upload_idle)  # without the time that the caller takes for a chunk
    size = 0
    stream = request.stream()
    while True:
        start = time.monotonic()
        try:
            async with asyncio.timeout(min(settings.upload_idle, max(0.0, deadline - start))):
                chunk = await anext(stream, None)
        except TimeoutError as error:
            raise UploadTimeout("The body arrived too slowly.") from error
        except ClientDisconnect as error:
            raise ClientGone() from error
        if chunk is None:
            return
        size += len(chunk)
        if arrival.add(len(chunk), time.monotonic() - start) < settings.upload_rate:
            raise UploadTimeout("The body arrived too slowly.")
        if size > limit:
            raise UploadTooLarge(limit, "The body")
        if chunk:
            yield chunk


async def run_while_connected(request: Request, work: Awaitable[Result]) -> Result:
    """Return the result of work that follows the body; cancel it when the client disconnects.

    Raises `ClientGone` in that case.
    """

    async def cancel_on_disconnect() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        scope.cancel()

    with anyio.CancelScope() as scope:
        watcher = asyncio.create_task(cancel_on_disconnect())
        try:
            return await work
        finally:
            watcher.cancel()
    raise ClientGone()


def media_type(request: Request) -> str:
    """Return the content type of the body without its parameters, in lower case."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def is_json(request: Request) -> bool:
    """Whether the content type of the body is a JSON type."""
    content_type = media_type(request)
    return content_type == "application/json" or (
        content_type.startswith("application/") and content_type.endswith("+json")
    )


def is_form(request: Request) -> bool:
    """Whether the body declares to be multipart/form-data."""
    return media_type(request) == "multipart/form-data"


async def read_json(request: Request, settings: Settings) -> Any:
    """Read and parse a JSON body of at most `body_bytes`, within `upload_idle` seconds.

    Raises `MediaTypeUnsupported`, `RequestInvalid`, and what `chunks` raises.
    """
    if not is_json(request):
        raise MediaTypeUnsupported("Send application/json; where files can be sent, also multipart/form-data.")
    body = bytearray()
    async for chunk in chunks(request, settings, settings.body_bytes, settings.upload_idle):
        body += chunk
    return parse_json(bytes(body))


def parse_json(text: bytes, *pointer: str) -> Any:
    """Parse JSON by RFC 8259: UTF-8, no NaN.

    Raises `RequestInvalid` that points at the field that holds the text.
    """
    try:
        return json.loads(text.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        where = f"field {pointer[0]}" if pointer else "body"
        why = f": {error.msg}, line {error.lineno}, column {error.colno}" if isinstance(error, JSONDecodeError) else ""
        detail = f"The {where} is not JSON{why}."
        raise RequestInvalid(detail, [field_error(detail, *pointer)]) from error


def _refuse_constant(constant: str) -> None:
    raise ValueError(constant)
