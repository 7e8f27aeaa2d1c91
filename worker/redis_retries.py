"""Commands that Redis does not execute: repeated until it does, or left undone."""

import itertools
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from redis.exceptions import AuthenticationError, NoPermissionError, RedisError
from rq.exceptions import StopRequested

logger = logging.getLogger("earmark.worker")

_PAUSES = (0.5, 1.0, 2.0, 4.0)  # s between tries while Redis does not execute a command; the last one repeats
# Errors of Redis that waiting does not mend: the password, and what the account may do.
REFUSALS = (AuthenticationError, NoPermissionError)

Reply = TypeVar("Reply")


def wait_for_redis(
    call: Callable[..., Reply], *arguments: Any, is_stopping: Callable[[], bool] = lambda: False
) -> Reply:
    """Return what a call returns once Redis executes it: an absent server may start, a full one gets room.

    Raises StopRequested as soon as `is_stopping()`, and REFUSALS.
    """
    for seconds in itertools.chain(_PAUSES, itertools.repeat(_PAUSES[-1])):
        try:
            return call(*arguments)
        except REFUSALS:
            raise
        except RedisError as error:
            logger.warning("Redis does not execute a command, next try in %g s: %s", seconds, error)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if is_stopping():
                raise StopRequested
            time.sleep(0.1)
    raise AssertionError  # the pauses never end


@contextmanager
def tolerate_redis_errors() -> Iterator[None]:
    """Log errors of Redis: for what nobody needs, or housekeeping does again."""
    try:
        yield
    except RedisError as error:
        logger.warning("Redis does not execute a command: %s", error)
