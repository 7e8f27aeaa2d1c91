"""Logging as plain text or JSON, with the ids of the request and the job that a line belongs to.

The request id is the client's `X-Request-Id` or a new one; the record of a job keeps it, so that lines of workers have
it too. Both ids are context variables, so code that logs does not pass them.

No line holds a secret: the finished line is searched for them, so that those in exceptions are found too.
"""

import contextlib
import logging
import re
from collections.abc import Iterator
from contextvars import ContextVar

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from app.settings import Settings

request_id: ContextVar[str | None] = ContextVar("earmark_request_id", default=None)
job_id: ContextVar[str | None] = ContextVar("earmark_job_id", default=None)

# What grants access, each with a word that a text with it contains in lower case; most lines have none. The names of
# parameters also stand in escaped form, in a path that holds a query string by mistake.
_PARAMETER = r"(?i)((?:[?&]|%3F|%26)(?:token|X-Amz-(?:Signature|Credential|Security-Token))(?:=|%3D))[^&\s\"'<>\\]+"
_SECRETS = [
    (word, re.compile(pattern))
    for word, pattern in {
        "token": _PARAMETER,
        "x-amz-": _PARAMETER,
        ".": r"(\.(?<=[0-9A-HJKMNP-TV-Z]{26}\.)[0-9a-f]{1,12}\.)[A-Za-z0-9_-]{43}",  # a token of a signed URL
        "emk_": r"(emk_[0-7][0-9A-HJKMNP-TV-Z]{25}_)[A-Za-z0-9_-]{43}",  # an API key
        "whsec_": r"(whsec_)[A-Za-z0-9+/=]{16,}",
        "bearer": r"(?i)(\bBearer\s+)[^\s\"']+",
        "://": r"(://[^\s/:@\"']*:)[^\s/@\"']+(?=@)",  # a password in a URL
    }.items()
]
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s%(ids)s"


def configure(settings: Settings, access: bool = True) -> None:
    """Write the log lines of this process to standard error, in the format of the settings.

    access: log each request too.
    """
    handler = logging.StreamHandler()
    handler.addFilter(_add_ids)
    handler.addFilter(_escape_arguments)
    handler.setFormatter(_json_formatter() if settings.log_format == "json" else _TextFormatter(_TEXT))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    logging.getLogger("earmark.access").disabled = not access


@contextlib.contextmanager
def job_context(job: str) -> Iterator[None]:
    """Log with the id of a job; the caller sets `request_id` once it has read the record."""
    job_token, request_token = job_id.set(job), request_id.set(None)
    try:
        yield
    finally:
        job_id.reset(job_token)
        request_id.reset(request_token)


def redact(text: str) -> str:
    """Return a text without its secrets; what they are, and whose, is still told."""
    lowered = text.lower()
    for word, pattern in _SECRETS:
        if word in lowered:
            text = pattern.sub(r"\1...", text)
    return text


class _TextFormatter(logging.Formatter):
    """Formats lines, with their tracebacks, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


class _RedactedJsonFormatter(JsonFormatter):
    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def _escape_arguments(record: logging.LogRecord) -> bool:
    """Escape control characters, which may forge lines."""
    if isinstance(record.args, tuple):
        record.args = tuple(_escape(argument) if isinstance(argument, str) else argument for argument in record.args)
    return True


def _escape(text: str) -> str:
    return _CONTROL.sub(lambda control: repr(control[0])[1:-1], text)


def _json_formatter() -> logging.Formatter:
    return _RedactedJsonFormatter(
        "%(levelname)s %(name)s %(message)s",
        timestamp="time",
        rename_fields={"levelname": "level", "name": "logger"},
        reserved_attrs=[*RESERVED_ATTRS, "ids", "fields", "color_message"],
    )


def _add_ids(record: logging.LogRecord) -> bool:
    """Add the ids, and the `fields` that the caller gave, to a log record.

    Plain text shows only those that the message does not contain.
    """
    variables = (("request_id", request_id), ("job_id", job_id))
    fields = dict(getattr(record, "fields", {}))
    fields |= {name: value for name, variable in variables if (value := variable.get())}
    record.__dict__.update(fields)
    message = record.getMessage()
    shown = {name: ",".join(value) if isinstance(value, list) else str(value) for name, value in fields.items()}
    missing = [f"{name}={_escape(value)}" for name, value in shown.items() if value not in message]
    record.ids = f" [{' '.join(missing)}]" if missing else ""
    return True
