"""The server itself, without a proxy, closes the connections of slow and silent clients."""

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from app.http.uvicorn_protocol import HttpProtocol
from app.settings import Settings
from tests.app.audio.test_audio import FORM, assert_nothing_left, form_ends
from tests.app.audio.test_resumable_uploads import create_upload, offset
from tests.app.conftest import LIMITS, Service, empty, eventually, serve, wav

SHORT = 2.0  # s for a head, in these tests: quick clients of a busy machine need less


class StrictProtocol(HttpProtocol):
    head_seconds = SHORT
    linger_seconds = SHORT


class PatientProtocol(HttpProtocol):
    linger_seconds = 60.0


@pytest.fixture(scope="module")
def _strict_service(valkey: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("strict-service")
    limits: dict[str, Any] = LIMITS | {"upload_idle": 1.0}
    settings = Settings(home=folder, redis_url=valkey.connection_url, **limits)
    yield from serve(settings, folder, StrictProtocol)


@pytest.fixture
def strict_service(_strict_service: Service, redis: Redis) -> Service:
    """The front end with short limits for heads, for pauses in bodies, and for bodies after the response, empty."""
    return empty(_strict_service)


def drip(service: Service, start: bytes, piece: bytes, pause: float = 0.05) -> bytes:
    """Send `start`, then `piece` repeatedly; return what came until the server closed the connection.

    It raises `TimeoutError` if the server keeps the connection open and silent for a minute.
    """
    with socket.create_connection(service.address, timeout=60) as connection:
        stop = threading.Event()

        def send() -> None:
            try:
                connection.sendall(start)
                while piece and not stop.wait(pause):
                    connection.sendall(piece)
            except OSError:
                pass

        sender, answer = threading.Thread(target=send), b""
        sender.start()
        try:
            while chunk := connection.recv(65536):
                answer += chunk
        except ConnectionError:
            pass
        stop.set()
        sender.join()
        return answer


SLOW_HEADS = {
    "nothing": (b"", b""),
    "half a head": (b"GET /livez HTTP/1.1\r\nHost: x\r\n", b""),
    "method": (b"G", b"E"),
    "path": (b"GET /", b"a"),
    "headers": (b"GET /livez HTTP/1.1\r\n", b"A: b\r\n"),
    "one header": (b"GET /livez HTTP/1.1\r\nA: ", b"b"),
}


def test_slow_heads_close_the_connection(strict_service: Service) -> None:
    def send(start: bytes, piece: bytes) -> bytes | TimeoutError:
        try:
            return drip(strict_service, start, piece)
        except TimeoutError as error:
            return error

    with ThreadPoolExecutor(len(SLOW_HEADS)) as pool:
        ended = {name: pool.submit(send, *head) for name, head in SLOW_HEADS.items()}
        kept_open = [name for name, end in ended.items() if isinstance(end.result(), TimeoutError)]
    assert kept_open == []


def test_a_slow_second_head_closes_the_connection_too(strict_service: Service) -> None:
    with socket.create_connection(strict_service.address, timeout=60) as connection:
        connection.sendall(2 * b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b""
        while answer.count(b'{"status":"alive"}') < 2:  # else the server, if it is slow, closes before it answers
            chunk = connection.recv(65536)
            assert chunk, answer
            answer += chunk
        connection.sendall(b"GET /livez HT")
        while chunk := connection.recv(65536):
            answer += chunk
    assert answer.count(b"HTTP/1.1 200 OK") == 2


def test_an_endless_head_closes_the_connection(strict_service: Service) -> None:
    with socket.create_connection(strict_service.address, timeout=60) as connection, pytest.raises(ConnectionError):
        for _ in range(100_000):
            connection.sendall(b"A: " + b"b" * 1000 + b"\r\n")


def test_an_idle_connection_may_send_a_request_later(strict_service: Service) -> None:
    assert strict_service.client.get("/livez").status_code == 200
    time.sleep(1.2 * SHORT)
    assert strict_service.client.get("/livez").status_code == 200


def test_pipelined_requests_are_limited(strict_service: Service) -> None:
    """Thousands fit into one read of the socket, and each would be buffered until the earlier ones are answered."""
    request = b"GET /livez HTTP/1.1\r\n\r\n"
    answer = drip(strict_service, HttpProtocol.pipeline_limit * request + b"GET /livez HTTP/1.0\r\n\r\n", b"")
    assert answer.count(b"HTTP/1.1 200 OK") == HttpProtocol.pipeline_limit + 1
    answer = drip(strict_service, 2000 * request, b"")
    assert answer.count(b"HTTP/1.1 200 OK") <= HttpProtocol.pipeline_limit + 1


def test_a_disconnect_ends_all_requests_of_the_connection(strict_service: Service) -> None:
    """The event stream of a queued job ends when its client disconnects, also with a pipelined request after it."""
    events = strict_service.separate()["events_url"]

    def running() -> float:
        metrics = strict_service.client.get("/metrics").text
        return float(metrics.partition("\nearmark_http_requests_in_progress ")[2].partition("\n")[0]) - 1

    eventually(lambda: running() == 0)
    for after in (b"", b"GET /livez HTTP/1.1\r\n\r\n"):
        with socket.create_connection(strict_service.address, timeout=60) as connection:
            connection.sendall(f"GET {events} HTTP/1.1\r\n\r\n".encode() + after)
            answer = b""
            while b"event: state" not in answer:
                answer += connection.recv(65536)
            assert running() == 1
        eventually(lambda: running() == 0)


def test_slow_bodies_close_the_connection_and_leave_nothing(strict_service: Service) -> None:
    """A byte now and then is never idle, but below the least rate."""
    starts = []
    for route, name in (("/v1/audio", "file"), ("/v1/separations", "mixture")):
        head = f"POST {route} HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\nContent-Type: "
        field = form_ends("a.wav")[0].replace(b'"file"', f'"{name}"'.encode())
        starts += [f"{head}{FORM['Content-Type']}\r\n\r\n".encode() + field]
        starts += [f"{head}application/json\r\n\r\n[".encode()]
    with ThreadPoolExecutor(len(starts)) as pool:
        for answer in pool.map(lambda start: drip(strict_service, start, b" ", pause=0.1), starts):
            assert answer.startswith(b"HTTP/1.1 408 ") and b"upload_timeout" in answer
    eventually(lambda: not strict_service.orphans())
    assert_nothing_left(strict_service)


def test_a_stalled_upload_times_out(strict_service: Service) -> None:
    head = f"POST /v1/audio HTTP/1.1\r\nHost: x\r\nContent-Type: {FORM['Content-Type']}\r\nContent-Length: 99999\r\n"
    answer = drip(strict_service, head.encode() + b"\r\n" + form_ends("a.wav")[0] + b"abc", b"")
    assert answer.startswith(b"HTTP/1.1 408 ") and b"upload_timeout" in answer
    assert_nothing_left(strict_service)


def test_a_slow_request_of_a_resumable_upload_ends_and_what_came_counts(strict_service: Service) -> None:
    url = create_upload(strict_service)
    head = f"PATCH {url} HTTP/1.1\r\nHost: x\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: 0\r\n"
    head += f"Content-Type: application/offset+octet-stream\r\nContent-Length: {len(wav())}\r\n\r\n"
    assert drip(strict_service, head.encode() + wav()[:7000], b"").startswith(b"HTTP/1.1 408 ")
    assert offset(strict_service, url) == 7000


def test_a_client_that_sends_on_receives_the_refusal_of_its_body(valkey: Any, redis: Redis, tmp_path: Path) -> None:
    """The body does not fit into the buffers of sockets: the response is there before all of it is sent."""
    size = 24 << 20
    assert size > LIMITS["upload_bytes"]
    head = f"POST /v1/audio HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: {FORM['Content-Type']}\r\n"
    settings = Settings(home=tmp_path, redis_url=valkey.connection_url, **LIMITS)
    for service in serve(settings, tmp_path, PatientProtocol):
        with socket.create_connection(service.address, timeout=60) as client:
            client.sendall(f"{head}Content-Length: {size}\r\n\r\n".encode())
            for _ in range(size >> 20):
                client.sendall(bytes(1 << 20))
            answer = b""
            while chunk := client.recv(65536):
                answer += chunk
        assert answer.startswith(b"HTTP/1.1 413 ") and answer.endswith(b"}")
