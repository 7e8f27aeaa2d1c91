"""Shifts the wall clock of a Python process by `SKEW` seconds; Python imports it at the start with this folder on its
path. The monotonic clock stays, as on a machine whose clock is wrong."""

import datetime
import os
import time

SKEW = float(os.environ.get("SKEW", "0"))
_time, _time_ns = time.time, time.time_ns


class SkewedDatetime(datetime.datetime):
    """`datetime` by the shifted clock."""

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> "SkewedDatetime":
        """Return the shifted time."""
        return cls.fromtimestamp(time.time(), tz)


time.time = lambda: _time() + SKEW
time.time_ns = lambda: _time_ns() + int(SKEW * 1e9)
datetime.datetime = SkewedDatetime  # pyright: ignore[reportAttributeAccessIssue]
