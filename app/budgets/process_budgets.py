"""The budgets of one front-end process, and their metrics."""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from redis.asyncio import Redis

from app.budgets.budget import Budget
from app.budgets.redis_memory import RedisMemory
from app.errors import RateLimited
from app.settings import Settings

# Shares of keys that are counted there.
_IN_REDIS = ("awaited_uploads", "excerpt_bytes", "idempotency", "kept_jobs", "kept_uploads")


class ProcessBudgets(Collector):
    """All budgets of one front-end process, and their metrics."""

    def __init__(self, settings: Settings, redis: Redis) -> None:
        share = settings.key_share
        patience = settings.budget_patience
        self.connections = Budget("connections", "connections", settings.connections, None)
        self.requests = Budget("requests", "requests in progress", settings.requests_in_progress, share)
        self.streams = Budget("streams", "event streams and long polls", settings.event_streams, share)
        self.uploads = Budget("uploads", "uploads in flight", settings.upload_slots, share, patience)
        # No patience: an upload that waited for more room would meanwhile keep the room it has.
        self.upload_room = Budget("upload_room", "bytes of uploads in flight", settings.upload_room, share)
        self.fetches = Budget("fetches", "fetches of URLs", settings.fetch_slots, share, patience)
        self.probes = Budget("probes", "files being probed", settings.probe_slots, share, patience)
        self.store_writes = Budget("store_writes", "uploads being stored", settings.store_slots, share, patience)
        self.waveforms = Budget("waveforms", "waveforms being computed", settings.waveform_slots, share, patience)
        self.sections = Budget("sections", "sections being decoded", settings.section_slots, share, patience)
        self.redis_memory = RedisMemory(redis, settings.redis_share)
        self._refused_by_redis: dict[str, int] = dict.fromkeys(_IN_REDIS, 0)
        self._lock = threading.Lock()

    def all(self) -> Iterable[Budget | RedisMemory]:
        """Return every budget."""
        return [value for value in vars(self).values() if isinstance(value, Budget | RedisMemory)]

    @contextmanager
    def count_refusal(self, name: str) -> Iterator[None]:
        """Count if the block refuses a key that has used up its share of a budget that is kept in Redis."""
        try:
            yield
        except RateLimited:
            with self._lock:
                self._refused_by_redis[name] += 1
            raise

    def collect(self) -> Iterable[Metric]:
        """Return what is used of each budget, what waits for it, and what was refused."""
        limit = GaugeMetricFamily("earmark_budget_limit", "Total of a budget of this process", labels=["budget"])
        used = GaugeMetricFamily("earmark_budget_used", "Amount of a budget that requests hold", labels=["budget"])
        waiting = GaugeMetricFamily("earmark_budget_waiting", "Requests that wait for a budget", labels=["budget"])
        refused = CounterMetricFamily(
            "earmark_budget_refused",
            "Requests refused because a budget was used up; scope: key (its share), all, or slow (uploads cut off)",
            labels=["budget", "scope"],
        )
        for budget in self.all():
            if isinstance(budget, Budget):
                limit.add_metric([budget.name], budget.total)
                used.add_metric([budget.name], budget.used)
                waiting.add_metric([budget.name], budget.waiting)
            for scope in ("key", "all", "slow"):
                refused.add_metric([budget.name, scope], budget.refused[scope])
        for name, count in self._refused_by_redis.items():
            refused.add_metric([name, "key"], count)
        return [limit, used, waiting, refused]
