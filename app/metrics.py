"""Figures for Prometheus; every name begins with `earmark_` and ends with its unit.

One process, one page: run one process a container or a host's port, and let Prometheus add them up (multiprocess mode
would go on counting what a killed process held). Figures of the process as a whole are in `PROCESS`; the front end
adds its requests and what it sees in Redis (`queue_metrics.py`).
"""

import logging

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, start_http_server
from prometheus_client import generate_latest as text_of
from prometheus_client.registry import Collector

log = logging.getLogger("earmark.metrics")

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
CALL_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)  # s

PROCESS = CollectorRegistry()
ProcessCollector(namespace="earmark", registry=PROCESS)  # its memory, processor time and open files

store_seconds = Histogram(
    "earmark_store_call_duration_seconds",
    "Seconds a call of the object store took; outcome: ok, missing or failed",
    ["operation", "outcome"],
    buckets=CALL_BUCKETS,
    registry=PROCESS,
)
webhook_deliveries = Counter(
    "earmark_webhook_deliveries_total",
    "Webhooks tried; outcome: delivered, failed (to be tried again) or given_up",
    ["outcome"],
    registry=PROCESS,
)


class Metrics:
    """The figures of one front end; `others` are collected with them."""

    def __init__(self, *others: Collector) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "earmark_http_requests_total",
            "Answers, by method, route and status",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "earmark_http_request_duration_seconds",
            "Seconds from a request's first byte to its answer's last",
            ["method", "route"],
            buckets=CALL_BUCKETS,
            registry=self.registry,
        )
        self.in_progress = Gauge(
            "earmark_http_requests_in_progress", "Requests not answered yet", registry=self.registry
        )
        self.uploaded = Counter("earmark_upload_bytes_total", "Bytes of uploads kept", registry=self.registry)
        self.created = Counter("earmark_jobs_created_total", "Jobs accepted", ["kind", "model"], registry=self.registry)
        for collector in (PROCESS, *others):
            self.registry.register(collector)

    def expose(self) -> bytes:
        """All figures in Prometheus's text format."""
        return text_of(self.registry)


def serve(port: int, host: str, registry: CollectorRegistry = PROCESS) -> None:
    """Serve a registry at http://host:port/metrics from a thread of its own; port 0: not at all. Raises OSError."""
    if port:
        start_http_server(port, host, registry)
        log.info("metrics at http://%s:%d/metrics", host, port)
