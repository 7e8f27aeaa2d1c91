"""Gauges of waiting and running jobs and of living workers, read from Redis at every scrape by Prometheus.

Every front end exports the same values: take their maximum, not their sum.
"""

from collections.abc import Iterable
from typing import Any

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from redis.exceptions import RedisError

from app.budgets.redis_memory import MemoryReading
from app.jobs.repository import JobRepository
from app.model_registry.registry import ModelRegistry
from app.redis_client import check_writes


class QueueMetrics(Collector):
    """Reads Redis when it is collected."""

    def __init__(self, jobs: JobRepository, registry: ModelRegistry) -> None:
        self._jobs = jobs
        self._models = registry

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return []  # else registering would call `collect`, which needs Redis

    def collect(self) -> Iterable[GaugeMetricFamily]:
        up = GaugeMetricFamily("earmark_queue_up", "Whether Redis answers and takes writes")
        used = GaugeMetricFamily("earmark_redis_memory_used_bytes", "Memory of the Redis server that is in use")
        limit = GaugeMetricFamily("earmark_redis_memory_limit_bytes", "maxmemory of the Redis server; 0: no limit")
        evicts = GaugeMetricFamily(
            "earmark_redis_evicts", "Whether a full Redis server drops records: maxmemory-policy is not noeviction"
        )
        unreadable = GaugeMetricFamily("earmark_records_unreadable", "Damaged records that were set aside")
        labels = ["model", "version"]  # an empty version: jobs, and workers, of the previous release
        waiting = GaugeMetricFamily("earmark_jobs_waiting", "Jobs that wait", labels=labels)
        oldest = GaugeMetricFamily(
            "earmark_jobs_oldest_waiting_seconds", "Seconds that the oldest waiting job has waited", labels=labels
        )
        audio = GaugeMetricFamily(
            "earmark_jobs_waiting_audio_seconds", "Seconds of audio of the waiting jobs", labels=labels
        )
        running = GaugeMetricFamily("earmark_jobs_running", "Jobs that workers hold", labels=labels)
        workers = GaugeMetricFamily("earmark_workers", "Workers alive", labels=labels)
        unfinished = GaugeMetricFamily("earmark_jobs_unfinished", "Jobs that wait or run")
        fair_queue, rq_queues = self._jobs.fair_queue, self._jobs.rq_queues
        try:
            counts = {model.id: model.workers for model in self._models.available()}
            for model in sorted({*counts, *fair_queue.models()}):
                waiting_count, running_count = fair_queue.waiting_count(model), rq_queues.running_count(model)
                if model not in counts and not waiting_count and not running_count:
                    continue  # a version of the past
                name, _, version = model.partition("@")
                waiting.add_metric([name, version], waiting_count)
                oldest.add_metric([name, version], fair_queue.oldest_age(model))
                audio.add_metric([name, version], fair_queue.waiting_seconds(model))
                running.add_metric([name, version], running_count)
                workers.add_metric([name, version], counts.get(model) or self._models.worker_count(model))
            unfinished.add_metric([], self._jobs.unfinished_count())
            unreadable.add_metric([], self._jobs.quarantine.count())
            info: Any = self._jobs.redis.info("memory")
            memory = MemoryReading.parse(info)
            used.add_metric([], memory.used)
            limit.add_metric([], memory.limit)
            evicts.add_metric([], memory.evicts)
        except RedisError:
            up.add_metric([], 0)
            return [up]
        up.add_metric([], self._takes_writes())
        return [up, waiting, oldest, audio, running, workers, unfinished, unreadable, used, limit, evicts]

    def _takes_writes(self) -> bool:
        try:
            check_writes(self._jobs.redis)
            return True
        except RedisError:
            return False
