"""Prometheus metrics; every name begins with `earmark_` and ends with its unit.

Each process serves its own metrics, on its own port, and Prometheus aggregates them (multiprocess mode would keep the
values of killed processes). `PROCESS` holds the metrics of every process; the front end adds those of its requests and
of the queue (`app/jobs/queue_metrics.py`).
"""

import logging
import socket
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
    make_wsgi_app,
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
        self.registry = combine(*others)
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
        self.refused_keys = Counter(
            "earmark_keys_refused_total",
            "Requests without a valid key; reason: missing, malformed, unknown (or revoked), or url (a signed URL)",
            ["reason"],
            registry=self.registry,
        )
        self.uploaded = Counter("earmark_upload_bytes_total", "Bytes of stored uploads", registry=self.registry)
        self.created = Counter("earmark_jobs_created_total", "Jobs accepted", ["kind", "model"], registry=self.registry)

    def expose(self) -> bytes:
        """Return all metrics in the Prometheus text format."""
        return generate_latest(self.registry)


Health = Callable[[], tuple[bool, str]]  # whether a process is well, and the JSON of its page


def combine(*collectors: Collector) -> CollectorRegistry:
    """Return a registry of the metrics of this process together with others."""
    registry = CollectorRegistry()
    for collector in (PROCESS, *collectors):
        registry.register(collector)
    return registry


def serve(port: int, host: str, registry: CollectorRegistry = PROCESS, health: Health | None = None) -> None:
    """Serve a registry at http://host:port/metrics in a background thread, unless `port` is 0. Raises OSError.

    health: served at `/livez`, with status 503 while the process is not well; without it, as the metrics are.
    """
    if not port:
        return
    metrics = make_wsgi_app(registry)

    def answer(environment: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if health is None or environment["PATH_INFO"] != "/livez":
            return metrics(environment, start_response)
        is_well, document = health()
        headers = [("Content-Type", "application/json")]
        start_response("200 OK" if is_well else "503 Service Unavailable", headers)
        return [document.encode()]

    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    server_class = type("Server", (_Server,), {"address_family": family})
    server = make_server(host, port, answer, server_class, _RequestHandler)
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    log.info("metrics at http://%s:%d/metrics", host, port)


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _RequestHandler(WSGIRequestHandler):
    timeout = 10  # s that a connection may be silent

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: scrapes are not requests of clients."""
