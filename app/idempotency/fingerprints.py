"""What makes two requests the same: method, path, query and body, and of a form its fields and its files' hashes.

Boundaries change from one sending to the next. It is taken while the body passes by; nothing of that is kept.
"""

import hashlib
import json

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from app.errors import RequestInvalid
from app.http import bodies
from app.http.multipart import Collector, disposition


class Fingerprint:
    """Of one request; `complete` once all of its body was seen, and could be read if it is a form."""

    def __init__(self, request: Request) -> None:
        self.bytes = 0  # of the body so far
        kind = bodies.media_type(request)
        self._whole = hashlib.sha256()
        self._add(request.method, request.url.path, request.url.query, kind)
        self._ended = "transfer-encoding" not in request.headers and request.headers.get("content-length", "0") == "0"
        self._form = _collector(request) if kind == "multipart/form-data" else None
        self._part = hashlib.sha256()
        self._over = self._form is None

    @property
    def complete(self) -> bool:
        """Whether the digest stands for the whole request."""
        return self._ended and self._over

    def digest(self) -> str:
        """The same for the same request."""
        return self._whole.hexdigest()

    def feed(self, chunk: bytes, last: bool) -> None:
        """The next piece of the body."""
        self.bytes += len(chunk)
        self._ended = self._ended or last
        if self._form is None:
            self._whole.update(chunk)
            return
        try:
            self._form.parser.write(chunk)
            self._take(self._form)
        except (FormParserError, RequestInvalid):  # whoever reads the form answers that it is broken
            self._form = None

    def _take(self, form: Collector) -> None:
        while form.events:
            kind, value = form.events.popleft()
            if isinstance(value, dict):
                name, filename = disposition(value)
                self._add(name, "field" if filename is None else "file")
                self._part = hashlib.sha256()
            elif kind == "data":
                self._part.update(value)
            elif kind == "part_end":
                self._whole.update(self._part.digest())
            else:
                self._over = True

    def _add(self, *words: str) -> None:
        self._whole.update(json.dumps(words).encode() + b"\n")


def _collector(request: Request) -> Collector | None:
    """None where the boundary is none: then the form is never complete."""
    _, options = parse_options_header(request.headers.get("content-type"))
    try:
        return Collector(options[b"boundary"])
    except (KeyError, FormParserError):
        return None
