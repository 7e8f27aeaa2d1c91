"""How much a caller may ask: requests a minute, and seconds of audio a day. Counted in Redis, by its clock."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from app.errors import QuotaExceeded

log = logging.getLogger("earmark.keys")

DAY = 86400


def rate_key(key_id: str) -> str:
    """The Redis key of a caller's rate."""
    return f"earmark:rate:{key_id}"


def quota_key(key_id: str) -> str:
    """The Redis key of what a caller has used of its day."""
    return f"earmark:quota:{key_id}"


@dataclass
class Allowance:
    """What a caller has left as its request is answered; a limit of 0 is none."""

    rate: int  # requests a minute
    requests_left: int
    reset: float  # seconds until all of a minute's requests are there again
    quota: int  # audio seconds a day
    used: float  # of them, today
    day_left: int  # seconds until the day ends, UTC

    @property
    def audio_seconds_left(self) -> int:
        """Whole seconds of audio left today."""
        return max(0, math.floor(self.quota - self.used))

    def headers(self) -> dict[str, str]:
        """`RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers-10); none without limits."""
        policies, states = [], []
        if self.rate:
            policies.append(f'"requests";q={self.rate};w=60')
            states.append(f'"requests";r={self.requests_left};t={math.ceil(self.reset)}')
        if self.quota:
            policies.append(f'"audio-seconds";q={self.quota};w={DAY};qu="audio-seconds"')
            states.append(f'"audio-seconds";r={self.audio_seconds_left};t={self.day_left}')
        return {"RateLimit-Policy": ", ".join(policies), "RateLimit": ", ".join(states)} if policies else {}


class Quotas:
    """Charges audio seconds to callers."""

    def __init__(self, redis: Redis) -> None:
        self._charge = redis.register_script(Path(__file__).with_suffix(".lua").read_text())

    @contextmanager
    def charge(self, key_id: str, allowance: Allowance | None, seconds: float) -> Iterator[None]:
        """Charge a caller for what is made in the block, and give it back if that fails.

        Raises `QuotaExceeded` where the day has no room for it.
        """
        if allowance is None or not allowance.quota:
            yield
            return
        allowed, used, day = self._run(key_id, seconds, allowance.quota, "")
        allowance.used = float(used)
        if not allowed:
            raise QuotaExceeded(
                f"This takes {seconds:.1f} s of audio; {allowance.audio_seconds_left} s are left today.",
                allowance.day_left,
            )
        try:
            yield
        except BaseException:
            try:
                allowance.used = float(self._run(key_id, -seconds, allowance.quota, day)[1])
            except RedisError as error:
                log.error("%.1f s of audio were not given back to %s: %s", seconds, key_id or "everybody", error)
            raise

    def adjust(self, key_id: str, seconds: float, charged_at: float) -> None:
        """Charge so much more (or less, where negative) for what was charged at a time (s since 1970), without asking
        whether there is room: it turned out to be longer."""
        self._run(key_id, seconds, 0, int(charged_at // DAY))

    def _run(self, key_id: str, seconds: float, quota: int, day: int | str) -> list[Any]:
        told: Any = self._charge(keys=[quota_key(key_id)], args=[f"{seconds:.3f}", quota, day])
        return told
