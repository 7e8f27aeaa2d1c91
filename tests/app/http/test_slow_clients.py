"""The server itself, without a proxy, closes the connections of slow and silent clients."""

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from redis import Redis

from app.http.uvicorn_protocol import HttpProtocol
from app.settings import Settings
from tests.app.audio.test_audio import FORM, assert_nothing_left, form_ends
from tests.app.conftest import LIMITS, Service, empty, eventually, serve

SHORT = 0.6  # s for a head, in these tests


class StrictProtocol(HttpProtocol):
    head_seconds = SHORT
    linger_seconds = SHORT


@pytest.fixture(scope="module")
def _strict_service(valkey: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("strict-service")
    settings = Settings(home=folder, redis_url=valkey.connection_url, **LIMITS)
    yield from serve(settings, folder, StrictProtocol)


@pytest.fixture
def strict_service(_strict_service: Service, redis: Redis) -> Service:
    """The front end with short limits for heads and for bodies after the response, empty."""
    return empty(_strict_service)


def drip(
    service: Service, start: bytes, piece: bytes, seconds: float = 8.0, pause: float = 0.05
) -> tuple[bytes, float]:
    """Send `start`, then `piece` repeatedly; return the response and the seconds until the connection ended."""
    with socket.create_connection(service.address, timeout=seconds) as connection:
        stop = threading.Event()

        def send() -> None:
            try:
                connection.sendall(start)
                while piece and not stop.wait(pause):
                    connection.sendall(piece)
            except OSError:
                pass

        sender, start_time, answer = threading.Thread(target=send), time.monotonic(), b""
        sender.start()
        try:
            while chunk := connection.recv(65536):
                answer += chunk
        except ConnectionError:
            pass
        seconds_open = time.monotonic() - start_time
        stop.set()
        sender.join()
        return answer, seconds_open


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (b"", b""),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\n", b""),
        (b"G", b"E"),
        (b"GET /", b"a"),
        (b"GET /livez HTTP/1.1\r\n", b"A: b\r\n"),
        (b"GET /livez HTTP/1.1\r\nA: ", b"b"),
    ],
    ids=["nothing", "half a head", "method", "path", "headers", "one header"],
)
def test_slow_heads_close_the_connection(strict_service: Service, start: bytes, piece: bytes) -> None:
    _, seconds_open = drip(strict_service, start, piece)
    assert seconds_open < SHORT + 3


def test_a_slow_second_head_closes_the_connection_too(strict_service: Service) -> None:
    request = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    answer, seconds_open = drip(strict_service, request + request + b"GET /livez HT", b"")
    assert answer.count(b"HTTP/1.1 200 OK") == 2 and seconds_open < SHORT + 3


def test_an_endless_head_closes_the_connection(strict_service: Service) -> None:
    start = time.monotonic()
    with socket.create_connection(strict_service.address, timeout=8) as connection, pytest.raises(OSError):
        for _ in range(100_000):
            connection.sendall(b"A: " + b"b" * 1000 + b"\r\n")
    assert time.monotonic() - start < 8


def test_quick_requests_are_answered(strict_service: Service) -> None:
    for _ in range(3):
        assert strict_service.client.get("/livez").status_code == 200
        time.sleep(SHORT / 2)
    time.sleep(SHORT)
    assert strict_service.client.get("/livez").status_code == 200


def test_pipelined_requests_are_limited(strict_service: Service) -> None:
    """Thousands fit into one read of the socket, and each would be buffered until the earlier ones are answered."""
    request = b"GET /livez HTTP/1.1\r\n\r\n"
    answer, _ = drip(strict_service, HttpProtocol.pipeline_limit * request + b"GET /livez HTTP/1.0\r\n\r\n", b"")
    assert answer.count(b"HTTP/1.1 200 OK") == HttpProtocol.pipeline_limit + 1
    answer, seconds_open = drip(strict_service, 2000 * request, b"")
    assert answer.count(b"HTTP/1.1 200 OK") <= HttpProtocol.pipeline_limit + 1 and seconds_open < 3


def test_a_disconnect_ends_all_requests_of_the_connection(strict_service: Service) -> None:
    """The event stream of a queued job ends when its client disconnects, also with a pipelined request after it."""
    events = strict_service.separate()["events_url"]

    def running() -> float:
        metrics = strict_service.client.get("/metrics").text
        return float(metrics.partition("\nearmark_http_requests_in_progress ")[2].partition("\n")[0]) - 1

    eventually(lambda: running() == 0, 5)
    for after in (b"", b"GET /livez HTTP/1.1\r\n\r\n"):
        with socket.create_connection(strict_service.address, timeout=5) as connection:
            connection.sendall(f"GET {events} HTTP/1.1\r\n\r\n".encode() + after)
            answer = b""
            while b"event: state" not in answer:
                answer += connection.recv(65536)
            assert running() == 1
        eventually(lambda: running() == 0, 5)


@pytest.mark.parametrize("route", ["/v1/audio", "/v1/separations"])
def test_slow_bodies_close_the_connection_and_leave_nothing(strict_service: Service, route: str) -> None:
    """A byte now and then is never idle, but below the least rate."""
    head = f"POST {route} HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n"
    field = form_ends("a.wav")[0].replace(b'"file"', b'"mixture"' if "separations" in route else b'"file"')
    for kind, start in ((FORM["Content-Type"], field), ("application/json", b"[")):
        answer, seconds_open = drip(
            strict_service, f"{head}Content-Type: {kind}\r\n\r\n".encode() + start, b" ", pause=0.1
        )
        assert answer.startswith(b"HTTP/1.1 408 ") and b"upload_timeout" in answer
        assert seconds_open < 6
    eventually(lambda: not strict_service.orphans(), 5)
    assert_nothing_left(strict_service)


def test_a_client_that_sends_on_receives_the_refusal_of_its_body(strict_service: Service) -> None:
    """The body does not fit into the buffers of sockets: the response is there before all of it is sent."""
    size = 24 << 20
    assert size > strict_service.deps.settings.upload_bytes
    head = f"POST /v1/audio HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: {FORM['Content-Type']}\r\n"
    with socket.create_connection(strict_service.address, timeout=20) as client:
        client.sendall(f"{head}Content-Length: {size}\r\n\r\n".encode())
        for _ in range(size >> 20):
            client.sendall(bytes(1 << 20))
        answer = b""
        while chunk := client.recv(65536):
            answer += chunk
    assert answer.startswith(b"HTTP/1.1 413 ") and answer.endswith(b"}")
