"""Metrics of housekeeping: its rounds, which Redis remembers, and what it is behind with.

All times are the Redis server's, so that neither the clock of a process nor Prometheus' matters. Every front end and
every housekeeping process exports the same values: take their maximum, not their sum.
"""

from collections.abc import Iterable
from typing import Any

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from redis import Redis
from redis.exceptions import RedisError

from app.jobs.job_records import EXPIRY_KEY
from app.jobs.webhook_outbox import DUE_KEY, WebhookOutbox
from app.records.audio import AUDIO_EXPIRY_KEY
from app.records.orphans import LEDGER_KEY
from app.redis_client import execute_when_full, server_clock

_ROUND_KEY = "earmark:housekeeping:round"
_EXPIRING = (EXPIRY_KEY, AUDIO_EXPIRY_KEY, LEDGER_KEY)  # indices of what expires, by due time


class Rounds:
    """When the last good round of a deployment's housekeeping ended: one in which every step could be tried."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._clock = server_clock(redis)

    def record(self) -> None:
        """Record that a good round ends now, on a full server too."""
        with self._redis.pipeline() as pipe:
            pipe.set(_ROUND_KEY, f"{self._clock.now():.3f}")
            execute_when_full(self._redis, pipe)

    def last(self) -> float | None:
        """Return when the last good round ended, in seconds since 1970; None: there has been none."""
        value: Any = self._redis.get(_ROUND_KEY)
        return None if value is None else float(value)


class HousekeepingMetrics(Collector):
    """Reads Redis when it is collected."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._clock = server_clock(redis)
        self._rounds = Rounds(redis)
        self._outbox = WebhookOutbox(redis)

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return []  # else registering would call `collect`, which needs Redis

    def collect(self) -> Iterable[GaugeMetricFamily]:
        last = GaugeMetricFamily(
            "earmark_housekeeping_last_round_timestamp_seconds", "When the last good round of housekeeping ended"
        )
        age = GaugeMetricFamily(
            "earmark_housekeeping_round_age_seconds", "Seconds since the last good round of housekeeping"
        )
        lag = GaugeMetricFamily("earmark_expiry_lag_seconds", "Seconds that the oldest expired object is overdue")
        pending = GaugeMetricFamily("earmark_webhooks_pending", "Webhooks neither delivered nor given up")
        overdue = GaugeMetricFamily("earmark_webhooks_overdue_seconds", "Seconds that the oldest webhook is overdue")
        try:
            ended, now = self._rounds.last(), self._clock.now()
            if ended is not None:
                last.add_metric([], ended)
                age.add_metric([], max(0.0, now - ended))
            lag.add_metric([], self._overdue(now, *_EXPIRING))
            pending.add_metric([], self._outbox.pending_count())
            overdue.add_metric([], self._overdue(now, DUE_KEY))
        except RedisError:  # `earmark_queue_up` tells
            return []
        return [last, age, lag, pending, overdue]

    def _overdue(self, now: float, *indices: str) -> float:
        """Return for how many seconds the first member of these indices by due time is due."""
        with self._redis.pipeline(transaction=False) as pipe:
            for index in indices:
                pipe.zrange(index, 0, 0, withscores=True)
            firsts = [members[0][1] for members in pipe.execute() if members]
        return max(0.0, now - min(firsts, default=now))
