"""Turns of the event loop: a client that sends hundreds of requests at once does not make others wait for all."""

import asyncio
import socket
import threading
from collections import Counter
from contextlib import ExitStack

import uvicorn
from starlette.types import Receive, Scope, Send

from app.budgets.budget import Budget
from app.http.turns import AT_ONCE, Turns
from app.http.uvicorn_protocol import HttpProtocol

MANY = 20 * AT_ONCE


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

    protocol = HttpProtocol.for_server(Budget("connections", "connections", 2 * MANY, None))
    server = uvicorn.Server(uvicorn.Config(app, http=protocol, ws="none", lifespan="off", log_level="warning"))
    with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as opened:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()

        def connect() -> socket.socket:
            return opened.enter_context(socket.create_connection(listener.getsockname(), 60))

        def send(connection: socket.socket, path: str, key: str) -> None:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {key}\r\n\r\n".encode())

        connections = [connect() for _ in range(MANY + 2)]
        for connection in connections:  # each is accepted and served
            send(connection, "/", "known")
            assert connection.recv(4096)
        begun.clear()
        send(connections[0], "/block", "many")
        assert blocked.wait(60)
        for connection in connections[1:-1]:
            send(connection, "/", "many")
        send(connections[-1], "/", "one")
        released.set()
        for connection in connections:
            assert connection.recv(4096)
        server.should_exit = True
    thread.join()
    assert Counter(begun) == {b"many": MANY, b"one": 1}
    assert begun.index(b"one") <= 2 * AT_ONCE
