"""Gauges of waiting and running jobs and of living workers, read from Redis at every scrape by Prometheus.

Every front end exports the same values: take their maximum, not their sum.
"""

from collections.abc import Iterable

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from redis.exceptions import RedisError

from app.jobs.repository import JobRepository
from app.model_registry import ModelRegistry


class QueueMetrics(Collector):
    """Reads Redis when it is collected."""

    def __init__(self, jobs: JobRepository, registry: ModelRegistry) -> None:
        self._jobs = jobs
        self._models = registry

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return []  # else registering would call `collect`, which needs Redis

    def collect(self) -> Iterable[GaugeMetricFamily]:
        up = GaugeMetricFamily("earmark_queue_up", "Whether Redis answers")
        waiting = GaugeMetricFamily("earmark_jobs_waiting", "Jobs that wait", labels=["model"])
        oldest = GaugeMetricFamily(
            "earmark_jobs_oldest_waiting_seconds", "Seconds that the oldest waiting job has waited", labels=["model"]
        )
        running = GaugeMetricFamily("earmark_jobs_running", "Jobs that workers hold", labels=["model"])
        workers = GaugeMetricFamily("earmark_workers", "Workers alive", labels=["model"])
        unfinished = GaugeMetricFamily("earmark_jobs_unfinished", "Jobs that wait or run")
        fair_queue, rq_queues = self._jobs.fair_queue, self._jobs.rq_queues
        try:
            for model in self._models.models():
                waiting.add_metric([model.name], fair_queue.waiting_count(model.name))
                oldest.add_metric([model.name], fair_queue.oldest_age(model.name))
                running.add_metric([model.name], rq_queues.running_count(model.name))
                workers.add_metric([model.name], self._models.worker_count(model.name))
            unfinished.add_metric([], self._jobs.unfinished_count())
            up.add_metric([], 1)
        except RedisError:
            up.add_metric([], 0)
            return [up]
        return [up, waiting, oldest, running, workers, unfinished]
