"""Receivers of webhooks for tests, with configurable responses."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Received:
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes
    at: float


@dataclass
class Receiver:
    """A receiver and its requests.

    answer: returns the status for the number of earlier requests; None closes the connection.
    """

    url: str
    answer: Callable[[int], int | None]
    pause: float = 0.0  # s before the response
    requests: list[Received] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore callers that close the connection, as some tests make them."""


@contextlib.contextmanager
def receiver(
    answer: Callable[[int], int | None] = lambda _: 204,
    *,
    address: str = "127.0.0.2",
    port: int = 0,
    pause: float = 0.0,
) -> Iterator[Receiver]:
    """Run a receiver on a loopback address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            before = len(served.requests)
            served.requests.append(Received(self.path, dict(self.headers.items()), body, time.monotonic()))
            status = answer(before)
            if served.closing.wait(served.pause) or status is None:
                return
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", f"{served.url}/elsewhere")
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"other")

        do_GET = do_POST  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            """Log nothing; tests read `requests`."""

    with _Server((address, port), Handler) as server:
        served = Receiver(f"http://{address}:{server.server_address[1]}", answer, pause)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield served
        served.closing.set()
        server.shutdown()
        thread.join(10)
