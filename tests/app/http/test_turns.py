"""Turns of the event loop: a client that sends hundreds of requests at once does not make others wait for all."""

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager

import uvicorn
from starlette.types import Receive, Scope, Send

from app.budgets.budget import Budget
from app.http.turns import AT_ONCE, Turns
from app.http.uvicorn_protocol import HttpProtocol

MANY = 20 * AT_ONCE


@contextmanager
def serve(app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> Iterator[Callable[[], socket.socket]]:
    """Run a server of an application; yield what opens a connection to it."""
    protocol = HttpProtocol.for_server(Budget("connections", "connections", 2 * MANY, None))
    server = uvicorn.Server(uvicorn.Config(app, http=protocol, ws="none", lifespan="off", log_level="warning"))
    with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as opened:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        yield lambda: opened.enter_context(socket.create_connection(listener.getsockname(), 60))
        server.should_exit = True
    thread.join()


def send_request(connection: socket.socket, path: str, key: str) -> None:
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {key}\r\n\r\n".encode())


def test_so_many_calls_run_in_a_turn_and_one_of_each_client_after_another() -> None:
    called: list[tuple[str, int]] = []

    async def run() -> None:
        turn, turns, loop = 0, Turns(), asyncio.get_running_loop()

        def count() -> None:
            nonlocal turn
            turn += 1
            loop.call_soon(count)

        loop.call_soon(count)
        for client in ["many"] * MANY + ["one", "two"]:
            turns.add(client, lambda client=client: called.append((client, turn)))
        while len(called) < MANY + 2:
            await asyncio.sleep(0)

    asyncio.run(run())
    assert set(Counter(turn for _, turn in called).values()) == {AT_ONCE, 2}  # the last turn has what is left
    assert [turn for client, turn in called if client != "many"] == [1, 1]


def test_a_request_begins_before_the_hundreds_that_another_client_has_sent_earlier() -> None:
    begun: list[bytes] = []
    blocked, released = threading.Event(), threading.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/block":
            blocked.set()
            released.wait(60)  # the whole event loop, so that what is sent meanwhile arrives in one turn
        else:
            begun.append(dict(scope["headers"])[b"authorization"])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    with serve(app) as connect:
        connections = [connect() for _ in range(MANY + 2)]
        for connection in connections:  # each is accepted and served
            send_request(connection, "/", "known")
            assert connection.recv(4096)
        begun.clear()
        send_request(connections[0], "/block", "many")
        assert blocked.wait(60)
        for connection in connections[1:-1]:
            send_request(connection, "/", "many")
        send_request(connections[-1], "/", "one")
        released.set()
        for connection in connections:
            assert connection.recv(4096)
    assert Counter(begun) == {b"many": MANY, b"one": 1}
    assert begun.index(b"one") <= 2 * AT_ONCE


def test_nothing_is_written_to_connections_that_are_closed_together_and_every_response_ends() -> None:
    ended: list[Exception | None] = []
    blocked, released, all_ended = threading.Event(), threading.Event(), threading.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/block":
            blocked.set()
            released.wait(60)  # the whole event loop, so that the connections are lost in one turn
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] == "/stream":
            disconnected = asyncio.create_task(wait_for_disconnect(receive))
            error = None
            while not disconnected.done() and error is None:
                try:
                    await send({"type": "http.response.body", "body": b"x", "more_body": True})
                except Exception as failure:
                    error = failure
                await asyncio.sleep(0)
            ended.append(error)
            if len(ended) == 4 * AT_ONCE:
                all_ended.set()
        await send({"type": "http.response.body"})

    async def wait_for_disconnect(receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    with serve(app) as connect:
        streams = [connect() for _ in range(4 * AT_ONCE)]
        for connection in streams:
            send_request(connection, "/stream", "many")
            assert connection.recv(4096)
        send_request(connect(), "/block", "one")
        assert blocked.wait(60)
        for connection in streams:
            connection.close()
        released.set()
        assert all_ended.wait(60)
    assert ended == [None] * len(streams)
