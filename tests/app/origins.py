"""Origin servers for URLs that clients name, on addresses of the loopback network; they record their requests."""

import contextlib
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class Origin:
    """One server. `answer`: its response in pieces; a number is a pause in seconds."""

    address: str
    port: int
    answer: list[bytes | float] = field(default_factory=list)
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0
    names: list[str | None] = field(default_factory=list)  # of hosts, by server name indication


def ok(body: bytes, *headers: str) -> list[bytes | float]:
    """A response with status 200."""
    head = "\r\n".join(["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *headers])
    return [head.encode() + b"\r\n\r\n" + body]


def redirect(location: str, status: int = 302) -> list[bytes | float]:
    """A redirect."""
    return [f"HTTP/1.1 {status} Moved\r\nContent-Length: 0\r\nLocation: {location}\r\n\r\n".encode()]


@contextlib.contextmanager
def origin(address: str = "127.0.0.2", port: int = 0, tls: ssl.SSLContext | None = None) -> Iterator[Origin]:
    """Run a server that closes each connection after one response."""
    with socket.create_server((address, port), backlog=16) as listener:
        server = Origin(address, listener.getsockname()[1])
        stopped = threading.Event()
        if tls is not None:
            tls.sni_callback = lambda _, name, __: server.names.append(name)

        def respond(client: socket.socket) -> None:
            with contextlib.suppress(OSError), client:
                connection = tls.wrap_socket(client, server_side=True) if tls else client
                with connection:
                    _respond(connection, server, stopped)

        threads: list[threading.Thread] = []

        def serve() -> None:
            while True:
                client, _ = listener.accept()
                if stopped.is_set():
                    client.close()
                    return
                server.connections += 1
                threads.append(threading.Thread(target=respond, args=(client,), daemon=True))
                threads[-1].start()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server
        stopped.set()
        socket.create_connection((address, server.port)).close()
        for ended in (thread, *threads):
            ended.join(10)


def _respond(connection: socket.socket, server: Origin, stopped: threading.Event) -> None:
    connection.settimeout(10)
    read = b""
    while b"\r\n\r\n" not in read:
        if not (chunk := connection.recv(65536)):
            return
        read += chunk
    length = re.search(rb"(?i)content-length: (\d+)", read)
    while length and len(read.partition(b"\r\n\r\n")[2]) < int(length[1]):
        read += connection.recv(65536)
    server.requests.append(read)
    for piece in server.answer:
        if isinstance(piece, bytes):
            connection.sendall(piece)
        elif stopped.wait(piece):
            return
