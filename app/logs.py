"""Log lines for people, or as JSON for machines, each with the request and the job that it belongs to.

A request's id comes with `X-Request-Id` or is made for it; the job's record keeps it, so that a worker's lines tell it
too. Both are context variables: code that logs does not pass them on.
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

_TOKEN = re.compile(r"([?&]token=)[^&\s\"]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s%(about)s"


def configure(settings: Settings, access: bool = True) -> None:
    """Write the process's log lines to standard error, in the form that the settings ask for.

    access: tell each request, too.
    """
    handler = logging.StreamHandler()
    handler.addFilter(_identify)
    handler.addFilter(_keep_plain)
    handler.setFormatter(_json() if settings.log_format == "json" else logging.Formatter(_TEXT))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    logging.getLogger("earmark.access").disabled = not access


@contextlib.contextmanager
def job_context(job: str) -> Iterator[None]:
    """Lines logged inside belong to a job, and once its record told `request_id`, to the request that asked for it."""
    jobs, requests = job_id.set(job), request_id.set(None)
    try:
        yield
    finally:
        job_id.reset(jobs)
        request_id.reset(requests)


def _keep_plain(record: logging.LogRecord) -> bool:
    """Take out of what is logged the tokens of addresses, which open things, and what would begin another line."""
    if isinstance(record.args, tuple):
        record.args = tuple(_plain(part) if isinstance(part, str) else part for part in record.args)
    return True


def _plain(text: str) -> str:
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], _TOKEN.sub(r"\1...", text))


def _json() -> logging.Formatter:
    return JsonFormatter(
        "%(levelname)s %(name)s %(message)s",
        timestamp="time",
        rename_fields={"levelname": "level", "name": "logger"},
        reserved_attrs=[*RESERVED_ATTRS, "about", "color_message"],
    )


def _identify(record: logging.LogRecord) -> bool:
    """Give a line the ids that it belongs to; those that the message names itself are not told twice in text."""
    ids = {name: variable.get() for name, variable in (("request_id", request_id), ("job_id", job_id))}
    told = {name: value for name, value in ids.items() if value}
    record.__dict__.update(told)
    unsaid = [f"{name}={value}" for name, value in told.items() if value not in record.getMessage()]
    record.about = f" [{' '.join(unsaid)}]" if unsaid else ""
    return True
