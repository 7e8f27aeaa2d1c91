"""Request bodies, read as they come: within limits of size and time, and never held whole unless they are small."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeVar

import anyio
from fastapi import Request
from starlette.requests import ClientDisconnect

from app.errors import ClientGone, MediaTypeUnsupported, RequestInvalid, UploadTimeout, UploadTooLarge
from app.http.problems import field_error
from app.settings import Settings

Result = TypeVar("Result")


async def chunks(
    request: Request, settings: Settings, limit: int, seconds: float | None = None
) -> AsyncIterator[bytes]:
    """The body as it comes.

    Raises `UploadTooLarge` when more than `limit` bytes are announced or come, `UploadTimeout` when nothing comes for
    `upload_idle` seconds, when less than `upload_rate` has come on average after so much waiting for it, or when it is
    not over in `seconds`, by default `upload_timeout`; `ClientGone` when the client hangs up.
    """
    announced = request.headers.get("content-length", "")
    if announced.isascii() and announced.isdigit() and int(announced[:19]) > limit:
        raise UploadTooLarge(limit, "The body")
    deadline = time.monotonic() + (settings.upload_timeout if seconds is None else seconds)
    waited = 0.0  # for the client, not for us
    size = 0
    stream = request.stream()
    while True:
        began = time.monotonic()
        try:
            async with asyncio.timeout(min(settings.upload_idle, max(0.0, deadline - began))):
                chunk = await anext(stream, None)
        except TimeoutError as error:
            raise UploadTimeout("The body came too slowly.") from error
        except ClientDisconnect as error:
            raise ClientGone() from error
        if chunk is None:
            return
        size += len(chunk)
        waited += time.monotonic() - began
        if waited > settings.upload_idle and size < settings.upload_rate * waited:
            raise UploadTimeout("The body came too slowly.")
        if size > limit:
            raise UploadTooLarge(limit, "The body")
        if chunk:
            yield chunk


async def run_while_connected(request: Request, work: Awaitable[Result]) -> Result:
    """What work comes to that follows a body; `ClientGone`, and the work is broken off, when the client hangs up."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        scope.cancel()

    with anyio.CancelScope() as scope:
        watching = asyncio.create_task(watch())
        try:
            return await work
        finally:
            watching.cancel()
    raise ClientGone()


def media_type(request: Request) -> str:
    """The body's content type without its parameters, in lower case."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def is_json(request: Request) -> bool:
    """Whether the body says that it is JSON."""
    kind = media_type(request)
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


def is_form(request: Request) -> bool:
    """Whether the body declares to be multipart/form-data."""
    return media_type(request) == "multipart/form-data"


async def read_json(request: Request, settings: Settings) -> Any:
    """A JSON body of at most `body_bytes`, all of it within `upload_idle` seconds.

    Raises `MediaTypeUnsupported`, `RequestInvalid`, and what `chunks` does.
    """
    if not is_json(request):
        raise MediaTypeUnsupported("Send application/json.")
    body = bytearray()
    async for chunk in chunks(request, settings, settings.body_bytes, settings.upload_idle):
        body += chunk
    return parse_json(bytes(body))


def parse_json(text: bytes, *pointer: str) -> Any:
    """JSON by RFC 8259: UTF-8, no NaN; raises `RequestInvalid` that points at the field it came from."""
    try:
        return json.loads(text.decode("utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise RequestInvalid("The body is not JSON.", [field_error("This is not JSON.", *pointer)]) from error


def _refuse(constant: str) -> None:
    raise ValueError(constant)
