"""Log lines contain the ids of their request and job; traces too."""

import gzip
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from redis import Redis

from app import logs
from app.settings import Settings
from tests.app.conftest import Service, eventually
from tests.conftest import REPOSITORY
from tests.ports import free_ports


def test_the_record_of_a_job_keeps_its_request_id(folder_service: Service) -> None:
    folder_service.client.headers["X-Request-Id"] = "order-17"
    try:
        job = folder_service.separate()
    finally:
        del folder_service.client.headers["X-Request-Id"]
    assert folder_service.deps.jobs.get(job["id"]).request_id == "order-17"


@contextmanager
def api(folder: Path, redis: Redis, **environment: str) -> Iterator[tuple[httpx.Client, Path]]:
    """Run a front end as a process; yield a client and its log file, in JSON lines."""
    (port,) = free_ports(1)
    server = redis.connection_pool.connection_kwargs["port"]
    settings = Settings(
        home=folder, port=port, redis_url=f"redis://127.0.0.1:{server}/0", log_format="json", auth="off"
    )
    log = folder / "log"
    with log.open("wb") as lines:
        program = subprocess.Popen(
            [sys.executable, "-m", "app"],
            cwd=REPOSITORY,
            env={**os.environ, **settings.as_environment(), **environment},
            stderr=lines,
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:

            def is_live() -> bool:
                assert program.poll() is None, log.read_text()
                try:
                    return client.get("/livez").is_success
                except httpx.TransportError:
                    return False

            eventually(is_live)
            yield client, log
    finally:
        program.terminate()
        program.wait(200)


def test_json_lines_have_the_request_id_and_no_secrets(tmp_path: Path, redis: Redis) -> None:
    with api(tmp_path, redis) as (client, log):
        client.get(
            "/v1/separations/nothing?token=s3cret",
            headers={"X-Request-Id": "order-18", "Authorization": "Bearer s3cret"},
        )
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    [line] = [line for line in lines if line.get("request_id") == "order-18"]
    assert line["message"] == f"GET /v1/separations/nothing {line['status']}" and line["logger"] == "earmark.access"
    assert line["seconds"] > 0
    assert "s3cret" not in log.read_text()


def test_clients_cannot_forge_log_lines(tmp_path: Path, redis: Redis) -> None:
    """With Redis unavailable, the error line contains the request's path."""
    variables = {
        "EARMARK_LOG_FORMAT": "text",
        "EARMARK_REDIS_URL": "redis://127.0.0.1:9",
        "EARMARK_REDIS_TIMEOUT": "0.2",
    }
    with api(tmp_path, redis, EARMARK_OPEN_RATE="1000", **variables) as (client, log):
        assert client.get("/v1/x%0aFORGED%0d%1b%5b2J%e2%80%a8").status_code == 503
    text = log.read_text()
    assert "FORGED" in text and "\x1b" not in text and "\u2028" not in text
    assert not [line for line in text.splitlines() if line.startswith("FORGED")]


class _Collector(BaseHTTPRequestHandler):
    """An OpenTelemetry collector that stores the requests it receives."""

    received: list[tuple[str, bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.received.append((self.path, body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        return


@pytest.fixture
def collector() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    received: list[tuple[str, bytes]] = []
    handler = type("Collector", (_Collector,), {"received": received})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", received
        server.shutdown()


def test_requests_are_traced_if_a_collector_is_set(
    tmp_path: Path, redis: Redis, collector: tuple[str, list[tuple[str, bytes]]]
) -> None:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    address, received = collector
    trace = "0af7651916cd43dd8448eb211c80319c"
    with api(tmp_path, redis, OTEL_EXPORTER_OTLP_ENDPOINT=address, OTEL_SERVICE_NAME="earmark-api") as (client, _):
        client.get("/v1/separations/nothing", headers={"traceparent": f"00-{trace}-b7ad6b7169203331-01"})
        client.get("/v1/separations/nothing?token=s3cret", headers={"traceparent": f"00-{trace}-b7ad6b7169203331-01"})
    assert received and {path for path, _ in received} == {"/v1/traces"}
    spans = []
    for _, body in received:
        request: Any = ExportTraceServiceRequest.FromString(body)
        for resource in request.resource_spans:
            assert "earmark-api" in str(resource.resource)
            spans += [span for scope in resource.scope_spans for span in scope.spans]
    traced = [span for span in spans if span.trace_id.hex() == trace]
    assert b"s3cret" not in b"".join(body for _, body in received)
    assert any(span.name == "GET /v1/separations/{job_id}" for span in traced), [span.name for span in traced]


SECRET = "A7-" * 13 + "Bb9_"  # 43 characters, as in keys and tokens
ULID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
FORMS = [
    f"GET /v1/audio/x/content?token={ULID}.6b0c2fe0.{SECRET}&download=1",
    f"/v1/x%3Ftoken%3D{SECRET}",
    f"http://store/a?X-Amz-Algorithm=x&X-Amz-Credential={SECRET}&X-Amz-Signature={SECRET}",
    f"Authorization: Bearer {SECRET}",
    f"a key emk_{ULID}_{SECRET}.",
    f"whsec_{SECRET.replace('-', '+').replace('_', '/')}=",
    f"redis://user:{SECRET}@queue:6379/0",
    f"('token', '{ULID}.6b0c2fe0.{SECRET}')",
]


@given(st.sampled_from(FORMS), st.text("abc =&?:/\"'", max_size=20), st.text("abc =&?:/\"'", max_size=20))
@hypothesis_settings(deadline=None)
def test_no_secret_is_in_a_redacted_text(form: str, before: str, after: str) -> None:
    redacted = logs.redact(f"{before} {form} {after}")
    assert SECRET not in redacted and SECRET.replace("-", "+").replace("_", "/") not in redacted
    assert redacted.startswith(before) and redacted.endswith(after)
    assert logs.redact(redacted) == redacted


@pytest.mark.parametrize(
    "text", ["job sep_1: done", "GET /v1/labels?q=token", "key_01ARZ3NDEKTSV4RRFFQ69G5FAV", "http://a:80/b@c"]
)
def test_what_is_no_secret_is_kept(text: str) -> None:
    assert logs.redact(text) == text


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_secrets_in_exceptions_are_not_logged(log_format: str) -> None:
    code = f"""
import logging
from app import logs
from app import logs
from app.settings import Settings
logs.configure(Settings(log_format={log_format!r}))
try:
    raise ValueError("PUT http://store/x?X-Amz-Signature={SECRET} failed")
except ValueError:
    logging.getLogger("earmark.storage").exception("upload %s", "http://store/y?token={SECRET}")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "ValueError" in done.stderr and done.stderr.count("...") == 2 and SECRET not in done.stderr
