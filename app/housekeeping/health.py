"""Health of a housekeeping process: which parts of its work failed when they were last tried, and why."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

from redis.exceptions import RedisError

from app.errors import EarmarkError, StoreRefused


class Health:
    """The failures of one process, by part: `round` (all of a round), `removal` (of what has expired), and
    `reconciliation` (of the store).

    Written by the thread that works and read by those that answer `/livez`.
    """

    def __init__(self) -> None:
        self._failures: dict[str, str] = {}

    @contextmanager
    def attempt(self, part: str) -> Iterator[None]:
        """Note whether the block, which does a part of the work, fails; what it raises is raised."""
        try:
            yield
        except Exception as error:
            self._failures[part] = _describe(error)
            raise
        self._failures.pop(part, None)

    @property
    def is_good(self) -> bool:
        """Whether each part succeeded when it was last tried."""
        return not self._failures

    def report(self) -> tuple[bool, str]:
        """Return whether this process is well, and the JSON of its page."""
        failures = dict(self._failures)
        document = {"status": "failing", "failures": failures} if failures else {"status": "alive"}
        return not failures, json.dumps(document)


def _describe(error: Exception) -> str:
    if isinstance(error, StoreRefused):
        return f"{error.detail} {error.advice}"
    if isinstance(error, EarmarkError):
        return error.detail
    return f"Redis: {error}" if isinstance(error, RedisError) else f"{type(error).__name__}; see the log"
