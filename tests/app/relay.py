"""A TCP relay to a server, for tests in which that server is away for a while."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

from tests.ports import free_ports


class Relay:
    """Forwards connections while it is open; `close` ends them all, and refuses new ones until `open`."""

    def __init__(self, target: str) -> None:
        """target: URL of the server."""
        self._target = (urlsplit(target).hostname or "", urlsplit(target).port or 80)
        self._port = free_ports(1)[0]
        self.pause = 0.0  # s before a request is forwarded; a shorter one ends those that have begun
        self.replies_to_lose = 0  # in place of so many replies the connection is closed
        self.url = f"http://127.0.0.1:{self._port}"
        self._listener: socket.socket | None = None
        self._connections: list[socket.socket] = []

    def open(self) -> None:
        """Accept connections."""
        self._listener = socket.create_server(("127.0.0.1", self._port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def close(self) -> None:
        """End all connections and refuse new ones."""
        listener, self._listener = self._listener, None
        for each in (listener, *self._connections):
            with contextlib.suppress(OSError):
                if each is not None:
                    each.shutdown(socket.SHUT_RDWR)
        if listener is not None:
            listener.close()
        self._connections.clear()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                threading.Thread(target=self._serve, args=(listener.accept()[0],), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._target) as server:
            self._connections += [client, server]
            back = threading.Thread(target=_forward, args=(server, client, self._passes_reply), daemon=True)
            back.start()
            _forward(client, server, self._passes_request)
            back.join()

    def _passes_request(self) -> bool:
        begin = time.monotonic()
        while (left := begin + self.pause - time.monotonic()) > 0:
            time.sleep(min(left, 0.02))
        return True

    def _passes_reply(self) -> bool:
        if self.replies_to_lose:
            self.replies_to_lose -= 1
            return False
        return True


def _forward(source: socket.socket, sink: socket.socket, passes: Callable[[], bool]) -> None:
    with contextlib.suppress(OSError):
        while (block := source.recv(65536)) and passes():
            sink.sendall(block)
    for each in (source, sink):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def relay(target: str) -> Iterator[Relay]:
    """Return an open relay to the server at this URL."""
    opened = Relay(target)
    opened.open()
    try:
        yield opened
    finally:
        opened.close()
