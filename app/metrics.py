"""Prometheus metrics; every name begins with `earmark_` and ends with its unit.

Each process serves its own metrics, on its own port, and Prometheus aggregates them (multiprocess mode would keep the
values of killed processes). `PROCESS` holds the metrics of every process; the front end adds those of its requests and
of the queue (`app/jobs/queue_metrics.py`).
"""

import logging

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
    start_http_server,
)
from prometheus_client.registry import Collector

log = logging.getLogger("earmark.metrics")

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# s; the last is what one upload may take (`Settings.upload_timeout`).
CALL_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200)

PROCESS = CollectorRegistry()
ProcessCollector(namespace="earmark", registry=PROCESS)  # memory, CPU time and open files

store_seconds = Histogram(
    "earmark_store_call_duration_seconds",
    "Duration of an object store call; outcome: ok, missing or failed",
    ["operation", "outcome"],
    buckets=CALL_BUCKETS,
    registry=PROCESS,
)
webhook_deliveries = Counter(
    "earmark_webhook_deliveries_total",
    "Webhook delivery attempts; outcome: delivered, failed (to be retried) or given_up",
    ["outcome"],
    registry=PROCESS,
)


class Metrics:
    """Metrics of one front end, collected together with `others`."""

    def __init__(self, *others: Collector) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "earmark_http_requests_total",
            "Responses, by method, route and status",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "earmark_http_request_duration_seconds",
            "Duration from the first byte of a request to the last byte of its response",
            ["method", "route"],
            buckets=CALL_BUCKETS,
            registry=self.registry,
        )
        self.in_progress = Gauge("earmark_http_requests_in_progress", "Requests in progress", registry=self.registry)
        self.uploaded = Counter("earmark_upload_bytes_total", "Bytes of stored uploads", registry=self.registry)
        self.created = Counter("earmark_jobs_created_total", "Jobs accepted", ["kind", "model"], registry=self.registry)
        for collector in (PROCESS, *others):
            self.registry.register(collector)

    def expose(self) -> bytes:
        """Return all metrics in the Prometheus text format."""
        return generate_latest(self.registry)


def serve(port: int, host: str, registry: CollectorRegistry = PROCESS) -> None:
    """Serve a registry at http://host:port/metrics in a background thread, unless `port` is 0. Raises OSError."""
    if port:
        start_http_server(port, host, registry)
        log.info("metrics at http://%s:%d/metrics", host, port)
