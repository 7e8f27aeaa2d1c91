"""multipart/form-data (RFC 7578) as a stream of parts, parsed while it arrives and never spooled."""

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from app.errors import NotMultipart, RequestInvalid
from app.http import bodies
from app.settings import Settings

_OVERHEAD = 64 * 1024  # bytes of boundaries and headers allowed beyond the parts themselves


@dataclass(frozen=True)
class Part:
    """One field of the form; its `chunks` must be read before the next part."""

    name: str
    filename: str | None  # as the client sent it; None for a plain field
    chunks: AsyncIterator[bytes]

    async def text(self, limit: int) -> str:
        """Return the text of a plain field of at most `limit` bytes. Raises `RequestInvalid`."""
        body = bytearray()
        async for chunk in self.chunks:
            body += chunk
            if len(body) > limit:
                raise RequestInvalid(f"The field {self.name} may have {limit} bytes.")
        try:
            return body.decode("utf-8")
        except UnicodeDecodeError as error:
            raise RequestInvalid(f"The field {self.name} is not UTF-8.") from error

    async def json(self, limit: int) -> Any:
        """Return the JSON of a plain field of at most `limit` bytes. Raises `RequestInvalid` that points at it."""
        return bodies.parse_json((await self.text(limit)).encode(), self.name)


class Collector:
    """Queue of the parser's events: `part` with its headers, `data` with bytes, `part_end`, and `form_end`."""

    def __init__(self, boundary: bytes) -> None:
        self.events: deque[tuple[str, bytes | dict[bytes, bytes]]] = deque()
        self._field = bytearray()
        self._value = bytearray()
        self._headers: dict[bytes, bytes] = {}
        self.parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_headers,
                "on_header_field": lambda data, start, end: self._field.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                "on_header_end": self._end_header,
                "on_headers_finished": lambda: self.events.append(("part", self._headers)),
                "on_part_data": lambda data, start, end: self.events.append(("data", data[start:end])),
                "on_part_end": lambda: self.events.append(("part_end", b"")),
                "on_end": lambda: self.events.append(("form_end", b"")),
            },
        )

    def _begin_headers(self) -> None:
        self._headers = {}

    def _end_header(self) -> None:
        self._headers[bytes(self._field).strip().lower()] = bytes(self._value).strip()
        self._field.clear()
        self._value.clear()


async def parts(request: Request, settings: Settings, files: int) -> AsyncGenerator[Part, None]:
    """Return the parts of the form in order; the body may hold `files` files of the largest size.

    Raises `NotMultipart`, `RequestInvalid` for a form that is malformed or truncated, and what `bodies.chunks` raises.
    """
    _, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary")
    if bodies.media_type(request) != "multipart/form-data" or not boundary:
        raise NotMultipart("Send multipart/form-data with a boundary, as curl -F does.")
    try:
        collector = Collector(boundary)
    except FormParserError as error:
        raise NotMultipart("The boundary is too long.") from error
    limit = files * settings.upload_bytes + settings.body_bytes + _OVERHEAD
    body = bodies.chunks(request, settings, limit)
    while (event := await _next(collector, body))[0] != "form_end":
        kind, headers = event
        if kind != "part" or not isinstance(headers, dict):
            raise RequestInvalid("The form is malformed.")
        name, filename = disposition(headers)
        content = _content(collector, body)
        yield Part(name, filename, content)
        async for _ in content:  # skip what the caller did not read
            pass
    async for _ in body:  # skip the epilogue
        pass


async def _content(collector: Collector, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    while (event := await _next(collector, body))[0] == "data":
        if isinstance(event[1], bytes):
            yield event[1]


async def _next(collector: Collector, body: AsyncIterator[bytes]) -> tuple[str, bytes | dict[bytes, bytes]]:
    while not collector.events:
        chunk = await anext(body, None)
        if chunk is None:
            raise RequestInvalid("The form ends before its last boundary.")
        try:
            collector.parser.write(chunk)
        except FormParserError as error:
            raise RequestInvalid("The form is malformed.") from error
    return collector.events.popleft()


def disposition(headers: dict[bytes, bytes]) -> tuple[str, str | None]:
    """Return the name of a part, and the file name if it is a file. Raises `RequestInvalid`."""
    kind, options = parse_options_header(headers.get(b"content-disposition"))
    if kind != b"form-data" or b"name" not in options:
        raise RequestInvalid("A part of the form has no name.")
    filename = options.get(b"filename")
    name = options[b"name"].decode("utf-8", "replace")
    return name, None if filename is None else filename.decode("utf-8", "replace")
