"""Middleware around every request: request id, metrics, access log, and the response to unexpected exceptions."""

import logging
import re
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import logs
from app.errors import TusVersionUnsupported
from app.http import access_log, problems
from app.http.uvicorn_protocol import get_refusal
from app.metrics import Metrics
from app.records.ids import new_id

log = logging.getLogger("earmark.http")

_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}  # that have time series of their own

_VALID_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


class ObservationMiddleware:
    """ASGI middleware that sets the request id (the client's, if valid), measures the request and logs it.

    An exception that no handler answers becomes a response of status 500, and a request on a connection beyond the
    budget one of status 503.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = Headers(scope=scope)
        client_id = sent.get("x-request-id", "")
        request_id = client_id if _VALID_ID.fullmatch(client_id) else new_id("req")
        scope["earmark.request_id"] = request_id
        logs.request_id.set(request_id)
        entry = access_log.begin(scope)
        receive, send = entry.count_received(receive), entry.count_sent(send)
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                headers.setdefault("X-Content-Type-Options", "nosniff")
                if "tus-resumable" in sent:  # the protocol wants it in every response, errors too
                    headers["Tus-Resumable"] = TusVersionUnsupported.supported
            await send(message)

        start = time.perf_counter()
        with self._metrics.in_progress.track_inprogress():
            try:
                if (refusal := get_refusal(scope)) is not None:
                    response = problems.problem(Request(scope), refusal, headers={"Connection": "close"})
                    await response(scope, receive, send_with_id)
                else:
                    await self._app(scope, receive, send_with_id)
            except ClientDisconnect:
                status = status or 499
            except Exception:
                log.exception("%s %s failed, request %s", scope["method"], scope["path"], request_id)
                if status:
                    raise  # the response has begun: the server must close the connection
                await problems.internal_error(Request(scope))(scope, receive, send_with_id)
        # The pattern of the route, not the path: the number of time series stays bounded.
        route = getattr(scope.get("route"), "path", "none")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._metrics.requests.labels(method, route, str(status)).inc()
        seconds = time.perf_counter() - start
        self._metrics.seconds.labels(method, route).observe(seconds)
        entry.write(scope, method, status, seconds, route)
