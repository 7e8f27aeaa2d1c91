"""Usage of the service by owner and day (UTC), counted in Redis: requests, audio seconds, stored bytes.

One hash per owner and day, which Redis drops after `usage_retention`. Requests are counted where they are authenticated
(`app/keys/middleware.lua`) and audio seconds where they are charged (`app/keys/quotas.lua`), in the same round trips.
"""

from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from redis import Redis
from redis.client import Pipeline

from app.errors import RequestInvalid
from app.redis_client import server_clock
from app.settings import Settings

DAY = 86400
_PREFIX = "earmark:usage:"
_SCANNED = 1000  # keys of Redis that one step of a scan looks at
DEFAULT_DAYS = 30
_FIRST = date(1970, 1, 1)


def usage_prefix(owner: str) -> str:
    """Return what the Redis keys of an owner's usage begin with; the number of the day since 1970 follows."""
    return f"{_PREFIX}{owner}:"


def stored_size(result: dict[str, Any]) -> int:
    """Return the bytes of the files that the result of a job of any kind names."""
    return sum(file["bytes"] for file in (*result.get("stems", ()), result.get("picture")) if file)


@dataclass(frozen=True)
class DayOfUsage:
    """Usage of one day. `stored_bytes` are those of the uploads and results that were stored on that day."""

    day: date
    requests: int = 0
    audio_seconds: float = 0.0
    stored_bytes: int = 0


class Usage:
    """The usage of one deployment."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._redis = redis
        self._clock = server_clock(redis)
        self._retention = int(settings.usage_retention)

    def period(self, first: date | None, last: date | None) -> tuple[date, date]:
        """Return the days to read: by default the `DEFAULT_DAYS` up to the last one, which is today by default.

        Raises `RequestInvalid` if the first is after the last, or if they are more than are kept.
        """
        longest = max(1, self._retention // DAY)
        last = last or _FIRST + timedelta(days=self._clock.now() // DAY)
        first = first or date.fromordinal(max(1, last.toordinal() - min(DEFAULT_DAYS, longest) + 1))
        if not 0 <= (last - first).days < longest:
            raise RequestInvalid(f"`from` must not be after `to`, nor more than {longest - 1} days before it.")
        return first, last

    def add_stored(self, pipe: Pipeline, owner: str, stored_bytes: int) -> None:
        """Count bytes that were stored for an owner, within a transaction."""
        key = f"{usage_prefix(owner)}{int(self._clock.now() // DAY)}"
        pipe.hincrby(key, "stored_bytes", stored_bytes)
        pipe.expire(key, self._retention)

    def owners(self) -> set[str]:
        """Return all owners of whom days are kept. Looks at every key of Redis: for operators only."""
        found: Any = self._redis.scan_iter(f"{_PREFIX}*", count=_SCANNED)
        return {key.decode().removeprefix(_PREFIX).rpartition(":")[0] for key in found}

    def read(self, owner: str, first: date, last: date) -> list[DayOfUsage]:
        """Return the days from `first` to `last` on which there was usage, the oldest first."""
        days = [first + timedelta(days=number) for number in range((last - first).days + 1)]
        with self._redis.pipeline(transaction=False) as pipe:
            for day in days:
                pipe.hgetall(f"{usage_prefix(owner)}{(day - _FIRST).days}")
            replies: list[Any] = pipe.execute()
        return [
            DayOfUsage(
                day,
                int(counts.get(b"requests", 0)),
                round(max(0.0, float(counts.get(b"audio_seconds", 0))), 3),
                int(counts.get(b"stored_bytes", 0)),
            )
            for day, counts in zip(days, replies, strict=True)
            if counts
        ]
