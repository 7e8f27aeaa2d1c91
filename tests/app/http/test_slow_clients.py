"""Clients that keep a connection without using it are sent away by the app itself, with no proxy in front."""

import socket
import threading
import time

import pytest

from app.http import uvicorn_protocol
from tests.app.audio.test_audio import FORM, form_ends, nothing_left
from tests.app.conftest import Service, eventually

SHORT = 0.6  # s for a head, in these tests


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uvicorn_protocol, "HEAD_SECONDS", SHORT)
    monkeypatch.setattr(uvicorn_protocol, "LINGER_SECONDS", SHORT)


def drip(
    service: Service, start: bytes, piece: bytes, seconds: float = 8.0, pause: float = 0.05
) -> tuple[bytes, float]:
    """Send `start`, then `piece` again and again; what was answered, and when the connection ended."""
    with socket.create_connection(service.address, timeout=seconds) as connection:
        over = threading.Event()

        def send() -> None:
            try:
                connection.sendall(start)
                while piece and not over.wait(pause):
                    connection.sendall(piece)
            except OSError:
                pass

        sender, began, answer = threading.Thread(target=send), time.monotonic(), b""
        sender.start()
        try:
            while chunk := connection.recv(65536):
                answer += chunk
        except ConnectionError:
            pass
        ended = time.monotonic() - began
        over.set()
        sender.join()
        return answer, ended


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
def test_slow_heads_are_cut(folder_service: Service, start: bytes, piece: bytes) -> None:
    _, ended = drip(folder_service, start, piece)
    assert ended < SHORT + 3


def test_a_slow_second_head_is_cut_too(folder_service: Service) -> None:
    request = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    answer, ended = drip(folder_service, request + request + b"GET /livez HT", b"")
    assert answer.count(b"HTTP/1.1 200 OK") == 2 and ended < SHORT + 3


def test_a_head_without_end_is_cut(folder_service: Service) -> None:
    began = time.monotonic()
    with socket.create_connection(folder_service.address, timeout=8) as connection, pytest.raises(OSError):
        for _ in range(100_000):
            connection.sendall(b"A: " + b"b" * 1000 + b"\r\n")
    assert time.monotonic() - began < 8


def test_what_is_quick_is_not_cut(folder_service: Service) -> None:
    for _ in range(3):
        assert folder_service.client.get("/livez").status_code == 200
        time.sleep(SHORT / 2)
    time.sleep(SHORT)
    assert folder_service.client.get("/livez").status_code == 200


def test_requests_ahead_of_answers_are_few(folder_service: Service) -> None:
    """Thousands fit into what is read at once, and each would be kept until those before it were answered."""
    request = b"GET /livez HTTP/1.1\r\n\r\n"
    answer, _ = drip(folder_service, uvicorn_protocol.PIPELINED * request + b"GET /livez HTTP/1.0\r\n\r\n", b"")
    assert answer.count(b"HTTP/1.1 200 OK") == uvicorn_protocol.PIPELINED + 1
    answer, ended = drip(folder_service, 2000 * request, b"")
    assert answer.count(b"HTTP/1.1 200 OK") <= uvicorn_protocol.PIPELINED + 1 and ended < 3


def test_whoever_hangs_up_ends_all_that_it_asked(folder_service: Service) -> None:
    """The stream of a job that waits goes on until its client is gone, whatever that has asked after it."""
    events = folder_service.separate()["events_url"]

    def running() -> float:
        figures = folder_service.client.get("/metrics").text
        return float(figures.partition("\nearmark_http_requests_in_progress ")[2].partition("\n")[0]) - 1

    eventually(lambda: running() == 0, 5)
    for after in (b"", b"GET /livez HTTP/1.1\r\n\r\n"):
        with socket.create_connection(folder_service.address, timeout=5) as connection:
            connection.sendall(f"GET {events} HTTP/1.1\r\n\r\n".encode() + after)
            answer = b""
            while b"event: state" not in answer:
                answer += connection.recv(65536)
            assert running() == 1
        eventually(lambda: running() == 0, 5)


@pytest.mark.parametrize("route", ["/v1/audio", "/v1/separations"])
def test_slow_bodies_are_cut_and_leave_nothing(folder_service: Service, route: str) -> None:
    """A byte now and then is never idle, and still too slow."""
    head = f"POST {route} HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n"
    field = form_ends("a.wav")[0].replace(b'"file"', b'"mixture"' if "separations" in route else b'"file"')
    for kind, start in ((FORM["Content-Type"], field), ("application/json", b"[")):
        answer, ended = drip(folder_service, f"{head}Content-Type: {kind}\r\n\r\n".encode() + start, b" ", pause=0.1)
        assert answer.startswith(b"HTTP/1.1 408 ") and b"upload_timeout" in answer
        assert ended < 6
    eventually(lambda: not folder_service.orphans(), 5)
    nothing_left(folder_service)
