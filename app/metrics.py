"""Figures for Prometheus; every name begins with `earmark_`.

Counters are of this process; what is waiting and who is alive is asked of Redis when somebody looks.
"""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from redis.exceptions import RedisError

from app.jobs import Jobs
from app.registry import Registry

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The figures of one process of the front end."""

    def __init__(self, jobs: Jobs, registry: Registry) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "earmark_http_requests_total",
            "Answers, by method, route and status",
            ["method", "route", "status"],
            registry=self._registry,
        )
        self.seconds = Histogram(
            "earmark_http_request_seconds",
            "Seconds from a request's first byte to its answer's last",
            ["method", "route"],
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
            registry=self._registry,
        )
        self.in_progress = Gauge(
            "earmark_http_requests_in_progress", "Requests not answered yet", registry=self._registry
        )
        self.uploaded = Counter("earmark_upload_bytes_total", "Bytes of uploads kept", registry=self._registry)
        self.created = Counter(
            "earmark_jobs_created_total", "Jobs accepted", ["kind", "model"], registry=self._registry
        )
        self._registry.register(_QueueFigures(jobs, registry))

    def expose(self) -> bytes:
        """All figures in Prometheus's text format."""
        return generate_latest(self._registry)


class _QueueFigures(Collector):
    """Looks into Redis when asked."""

    def __init__(self, jobs: Jobs, registry: Registry) -> None:
        self._jobs = jobs
        self._models = registry

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return []  # asking Redis when registering would need it to be there

    def collect(self) -> Iterable[GaugeMetricFamily]:
        up = GaugeMetricFamily("earmark_queue_up", "Whether the queue's server answers")
        waiting = GaugeMetricFamily("earmark_jobs_waiting", "Jobs that wait", labels=["model"])
        workers = GaugeMetricFamily("earmark_workers", "Workers alive", labels=["model"])
        unfinished = GaugeMetricFamily("earmark_jobs_unfinished", "Jobs that wait or run")
        try:
            for model in self._models.models():
                waiting.add_metric([model.name], self._jobs.waiting(model.name))
                workers.add_metric([model.name], self._models.workers(model.name))
            unfinished.add_metric([], self._jobs.unfinished())
            up.add_metric([], 1)
        except RedisError:
            up.add_metric([], 0)
            return [up]
        return [up, waiting, workers, unfinished]
