"""Servers that take webhooks, as good or as bad as a test wants them."""

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
    """A receiver and all that it got. `answer`: from how many requests there were before, the status; None hangs up."""

    url: str
    answer: Callable[[int], int | None]
    pause: float = 0.0  # s before it answers
    got: list[Received] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """Callers that hang up are part of the tests."""


@contextlib.contextmanager
def receiver(
    answer: Callable[[int], int | None] = lambda _: 204,
    *,
    address: str = "127.0.0.2",
    port: int = 0,
    pause: float = 0.0,
) -> Iterator[Receiver]:
    """A receiver on an address of the loopback network."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            before = len(served.got)
            served.got.append(Received(self.path, dict(self.headers.items()), body, time.monotonic()))
            status = answer(before)
            if served.over.wait(served.pause) or status is None:
                return
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", f"{served.url}/elsewhere")
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"other")

        do_GET = do_POST  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            """Tests look at `got`."""

    with _Server((address, port), Handler) as server:
        served = Receiver(f"http://{address}:{server.server_address[1]}", answer, pause)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield served
        served.over.set()
        server.shutdown()
        thread.join(10)
