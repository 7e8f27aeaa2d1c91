"""uvicorn's HTTP protocol with limits on connections, and on the time and size of a request's head.

Without them a client that sends nothing, or a byte now and then, holds its connection forever, and a head without end
is buffered in memory. Pipelined requests are limited too, and the application learns of a disconnect while it answers
an earlier one of them. Bodies have their own deadlines, in `bodies.py`; the rest of a body whose request is already
answered is read for a short time, so that the client sees the response, before the connection is closed.

uvicorn's own limit of connections answers liveness probes with 503 too, so that the process would be killed when it is
busiest. Here connections beyond the budget are open as well, and refused only what is not `HEALTH_PATHS`.

Hundreds of requests that arrive at once begin in turns of the event loop, those of each client after one another, and
so end those whose connections are closed: the others are answered between them.
"""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from starlette.types import Scope
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from app.budgets.budget import Budget
from app.errors import Overloaded
from app.http import problems
from app.http.turns import Turns
from app.records.ids import new_id

log = logging.getLogger("earmark.http")

HEALTH_PATHS = frozenset({"/livez", "/readyz"})
_REFUSAL = "earmark.refusal"


def get_refusal(scope: Scope) -> Overloaded | None:
    """Return why the server refuses a request before the application reads it; None if it does not."""
    return scope.get(_REFUSAL)


class _ResponseTransport:
    """The transport as a response sees it: closing it while a body arrives is left to the protocol.

    A socket that is closed with unread bytes resets the connection, and its client may lose the response.
    """

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self._transport = transport
        self.close = close

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol on httptools that closes connections whose heads take too long or are too large.

    A server has a subclass of its own (`for_server`). Requests on connections beyond its budget are marked for
    `get_refusal`.
    """

    budget: Budget
    turns: Turns

    head_seconds = 15.0  # from the connection, or a later request's first byte, to the end of the head
    head_bytes = 64 * 1024  # checked while a head is incomplete: one that arrives in one piece may be somewhat larger
    pipeline_limit = 16  # requests that may wait for the responses to earlier ones
    linger_seconds = 5.0  # for the rest of a body after its request is answered

    _is_within_budget = False
    _deadline: asyncio.TimerHandle | None = None
    _head_size = 0  # bytes received of the current head
    _is_body_pending = False
    _is_half_closed = False  # the response is sent, and nothing follows it
    _active: RequestResponseCycle | None = None  # `cycle` is the latest request, which may wait in the pipeline

    @classmethod
    def for_server(cls, budget: Budget) -> "type[HttpProtocol]":
        """Return the protocol of one server, which runs on one event loop. budget: of its connections."""
        return type("ServerProtocol", (cls,), {"budget": budget, "turns": Turns()})

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._is_within_budget = self.budget.used < self.budget.total
        if self._is_within_budget:
            self.budget.take("", 1)
        self._start_head_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_deadline()
        if self._is_within_budget:
            self.budget.give_back("", 1)
        for cycle in (self.cycle, self._active):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True  # from now on nothing is written; the application learns of it in its turn
        self.turns.add(self._client_of(self._active), partial(self._end, exc))

    def _end(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.pipeline.clear()
        if self._active is not None and not self._active.response_complete:
            self._active.disconnected = True
            self._active.message_event.set()

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= self.pipeline_limit:
            self._close()
            raise ConnectionAbortedError  # stops the parser, which has more requests in its buffer
        super().on_message_begin()
        self._start_head_deadline()

    def on_headers_complete(self) -> None:
        self._cancel_deadline()
        self._is_body_pending = True
        super().on_headers_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._active = cycle
        scope: Any = cycle.scope  # annotated as one without keys of others
        if not self._is_within_budget and scope["path"] not in HEALTH_PATHS:
            scope[_REFUSAL] = self.budget.refuse("", 1)
        cycle.transport = cast(asyncio.Transport, _ResponseTransport(self.transport, self._close_after_body))
        self.turns.add(self._client_of(cycle), partial(super()._start_asgi_task, cycle, app))

    def _client_of(self, cycle: RequestResponseCycle | None) -> object:
        """Return who sent a request: a key, or an address, neither of them verified."""
        headers = () if cycle is None else cycle.scope["headers"]
        address = self.client[0] if self.client else None
        return next((value for name, value in headers if name == b"authorization"), address)

    def on_message_complete(self) -> None:
        self._is_body_pending = False
        self._cancel_deadline()
        super().on_message_complete()
        if self._is_half_closed:
            self._close()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # Only if the response belongs to the request whose body is pending, and not to an earlier one in the pipeline.
        if self._is_body_pending and self._deadline is None and self.cycle is not None and self.cycle.response_complete:
            self._deadline = self.loop.call_later(self.linger_seconds, self._close)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._deadline is not None and not self._is_body_pending:
            self._head_size += len(data)
            if self._head_size > self.head_bytes:
                self._close()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP with a problem, unless the client would take it for an earlier request's response."""
        if self.transport.is_closing():
            return
        active = self._active
        is_in_body = self._is_body_pending and active is self.cycle
        if active is None or active.response_complete or (is_in_body and not active.response_started):
            response = problems.malformed_request(new_id("req"))
            log.warning("%s sent what is not HTTP, request %s", self.client, response.headers["X-Request-Id"])
            lines = [b": ".join(header) + b"\r\n" for header in response.raw_headers]
            self.transport.write(b"".join([STATUS_LINE[400], *lines, b"\r\n", response.body]))
        self._close()

    def _close_after_body(self) -> None:
        if not self._is_body_pending or self.transport.is_closing():
            self._close()
        elif self.transport.can_write_eof():
            self._is_half_closed = True
            self.transport.write_eof()

    def _start_head_deadline(self) -> None:
        if self._deadline is None:
            self._head_size = 0
            self._deadline = self.loop.call_later(self.head_seconds, self._close)

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _close(self) -> None:
        # Without a response: an earlier request may still be answered on this connection.
        self._cancel_deadline()
        if not self.transport.is_closing():
            self.transport.close()
