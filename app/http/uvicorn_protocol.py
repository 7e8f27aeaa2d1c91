"""Connections as uvicorn serves them, with what it lacks: a time and a size within which a request's head must come.

Without them a client that sends nothing, or one byte now and then, keeps its place for ever, and a head without end is
gathered in memory. Requests that are sent ahead of earlier ones' answers are few, and all of them learn that the client
has hung up. Bodies have deadlines of their own, in `bodies.py`; what a client goes on sending after it was answered is
read for a while, so that it sees the answer, and then cut.
"""

import asyncio
from typing import Any

from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

HEAD_SECONDS = 15.0  # from the connection, or a later request's first byte, to the end of the head
HEAD_BYTES = 64 * 1024  # beyond which a head that is not over is cut; one that comes at once may be somewhat larger
PIPELINED = 16  # requests that may wait for the answers of those before them; with more, the connection is cut
LINGER_SECONDS = 5.0  # that the rest of a body may take once the request was answered


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol on httptools that closes connections whose heads take too long or too much."""

    _deadline: asyncio.TimerHandle | None = None
    _head = 0  # bytes since it began
    _body = False  # whether a body is still to come
    _answering: RequestResponseCycle | None = None  # `cycle` is the last request that came, which may have to wait

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._begin()

    def connection_lost(self, exc: Exception | None) -> None:
        self._over()
        super().connection_lost(exc)
        self.pipeline.clear()
        if self._answering is not None and not self._answering.response_complete:
            self._answering.disconnected = True
            self._answering.message_event.set()

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= PIPELINED:
            self._cut()
            raise ConnectionAbortedError  # lest the parser go on with what it has
        super().on_message_begin()
        self._begin()

    def on_headers_complete(self) -> None:
        self._over()
        self._body = True
        super().on_headers_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def on_message_complete(self) -> None:
        self._body = False
        self._over()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # Not if it was an earlier request's answer, while the body is that of one that waits its turn.
        if self._body and self._deadline is None and self.cycle is not None and self.cycle.response_complete:
            self._deadline = self.loop.call_later(LINGER_SECONDS, self._cut)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._deadline is not None and not self._body:
            self._head += len(data)
            if self._head > HEAD_BYTES:
                self._cut()

    def _begin(self) -> None:
        if self._deadline is None:
            self._head = 0
            self._deadline = self.loop.call_later(HEAD_SECONDS, self._cut)

    def _over(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _cut(self) -> None:
        # Without an answer: a request that came before may still be answered on this connection.
        self._over()
        if not self.transport.is_closing():
            self.transport.close()
