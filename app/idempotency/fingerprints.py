"""Fingerprints of requests, equal for repetitions: hashes of method, path, query and body.

Of a form the fields and the contents of files count, since boundaries differ between repetitions. The body is hashed
as it streams and never stored.
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
    """Fingerprint of one request; `complete` when it covers the whole body, and the form in it is well-formed."""

    def __init__(self, request: Request) -> None:
        self.bytes = 0  # of the body so far
        media_type = bodies.media_type(request)
        self._digest = hashlib.sha256()
        self._add(request.method, request.url.path, request.url.query, media_type)
        if "upload-length" in request.headers:  # a resumable upload is described by its headers
            self._add(*(request.headers.get(name, "") for name in ("upload-length", "upload-metadata")))
        self._is_body_complete = (
            "transfer-encoding" not in request.headers and request.headers.get("content-length", "0") == "0"
        )
        self._form = _collector(request) if media_type == "multipart/form-data" else None
        self._part_digest = hashlib.sha256()
        self._is_form_complete = self._form is None

    @property
    def complete(self) -> bool:
        """Whether the digest covers the whole request."""
        return self._is_body_complete and self._is_form_complete

    def digest(self) -> str:
        """Return the digest, equal for equal requests."""
        return self._digest.hexdigest()

    def feed(self, chunk: bytes, last: bool) -> None:
        """Add the next chunk of the body."""
        self.bytes += len(chunk)
        self._is_body_complete = self._is_body_complete or last
        if self._form is None:
            self._digest.update(chunk)
            return
        try:
            self._form.parser.write(chunk)
            self._add_events(self._form)
        except (FormParserError, RequestInvalid):  # the route reports that the form is malformed
            self._form = None

    def _add_events(self, form: Collector) -> None:
        while form.events:
            kind, value = form.events.popleft()
            if isinstance(value, dict):
                name, filename = disposition(value)
                self._add(name, "field" if filename is None else "file")
                self._part_digest = hashlib.sha256()
            elif kind == "data":
                self._part_digest.update(value)
            elif kind == "part_end":
                self._digest.update(self._part_digest.digest())
            else:
                self._is_form_complete = True

    def _add(self, *words: str) -> None:
        self._digest.update(json.dumps(words).encode() + b"\n")


def _collector(request: Request) -> Collector | None:
    """Return None if the boundary is invalid; the form is then never complete."""
    _, options = parse_options_header(request.headers.get("content-type"))
    try:
        return Collector(options[b"boundary"])
    except (KeyError, FormParserError):
        return None
