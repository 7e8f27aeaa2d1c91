"""Rate limits (requests a minute) and quotas (seconds of audio a day), counted in Redis by its clock."""

import logging
import math
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from app.errors import QuotaExceeded
from app.records.usage import DAY, usage_prefix
from app.settings import Settings

log = logging.getLogger("earmark.keys")


def rate_key(key_id: str) -> str:
    """Return the Redis key of a caller's rate limit."""
    return f"earmark:rate:{key_id}"


def quota_key(key_id: str) -> str:
    """Return the Redis key of the audio seconds that a caller has used today."""
    return f"earmark:quota:{key_id}"


@dataclass
class Allowance:
    """A caller's limits, and what is left of them when its request arrives; a limit of 0 is no limit."""

    rate: int  # requests a minute
    requests_left: int
    rate_reset: float  # seconds until all requests of a minute are available again
    quota: int  # audio seconds a day
    used: float  # audio seconds of today
    quota_reset: int  # seconds until the day ends, UTC

    @property
    def audio_seconds_left(self) -> int:
        """Whole seconds of audio that are left today."""
        return max(0, math.floor(self.quota - self.used))

    def headers(self) -> dict[str, str]:
        """Return `RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers-10); none without limits."""
        policies, states = [], []
        if self.rate:
            policies.append(f'"requests";q={self.rate};w=60')
            states.append(f'"requests";r={self.requests_left};t={math.ceil(self.rate_reset)}')
        if self.quota:
            policies.append(f'"audio-seconds";q={self.quota};w={DAY};qu="audio-seconds"')
            states.append(f'"audio-seconds";r={self.audio_seconds_left};t={self.quota_reset}')
        return {"RateLimit-Policy": ", ".join(policies), "RateLimit": ", ".join(states)} if policies else {}


NO_LIMITS = Allowance(0, 0, 0.0, 0, 0.0, 0)


class Quotas:
    """Charges audio seconds to the quotas of callers, and counts them as their usage."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._charge = redis.register_script(Path(__file__).with_suffix(".lua").read_text())
        self._usage_retention = int(settings.usage_retention)

    @contextmanager
    def charge(self, key_id: str, allowance: Allowance | None, seconds: float) -> Iterator[None]:
        """Charge a caller for the job that the block creates, and refund the charge if the block raises.

        Raises `QuotaExceeded` if the quota of today does not suffice. Without a quota only its usage is counted.
        """
        allowance = allowance or NO_LIMITS
        allowed, used, day = self._run(key_id, seconds, allowance.quota, "")
        if allowance.quota:
            allowance.used = float(used)
        if not allowed:
            raise QuotaExceeded(
                f"This takes {seconds:.1f} s of audio; {allowance.audio_seconds_left} s are left today.",
                allowance.quota_reset,
            )
        try:
            yield
        except BaseException:
            try:
                refunded = self._run(key_id, -seconds, allowance.quota, day)
                if allowance.quota:
                    allowance.used = float(refunded[1])
            except RedisError as error:
                log.error("%.1f s of audio were not refunded to %s: %s", seconds, key_id or "anonymous callers", error)
            raise

    def adjust(self, key_id: str, seconds: float, charged_at: float) -> None:
        """Correct the charge made at `charged_at` (s since 1970) by `seconds`, without enforcing the quota.

        Needed when a recording turns out to be longer or shorter than was charged.
        """
        self._run(key_id, seconds, 0, int(charged_at // DAY))

    def _run(self, key_id: str, seconds: float, quota: int, day: int | str) -> list[Any]:
        keys = [quota_key(key_id), usage_prefix(key_id), f"earmark:quota-call:{secrets.token_hex(16)}"]
        reply: Any = self._charge(keys=keys, args=[f"{seconds:.3f}", quota, day, self._usage_retention])
        return reply
