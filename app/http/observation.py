"""Around every request: its id, its figures, and the answer to what nobody expected."""

import logging
import re
import time
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import logs
from app.http import problems
from app.metrics import Metrics
from app.records.ids import new_id

log = logging.getLogger("earmark.http")
access = logging.getLogger("earmark.access")

_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


class ObservationMiddleware:
    """ASGI middleware: gives the request an id (the client's if it is sane), counts, and catches what is left."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = Headers(scope=scope).get("x-request-id", "")
        request_id = sent if _SANE_ID.fullmatch(sent) else new_id("req")
        scope["earmark.request_id"] = request_id
        logs.request_id.set(request_id)
        status = 0

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                headers.setdefault("X-Content-Type-Options", "nosniff")
            await send(message)

        begun = time.perf_counter()
        with self._metrics.in_progress.track_inprogress():
            try:
                await self._app(scope, receive, observed)
            except ClientDisconnect:
                status = status or 499
            except Exception:
                log.exception("%s %s failed, request %s", scope["method"], scope["path"], request_id)
                if status:
                    raise  # too late for an answer: let the server break the connection off
                await problems.internal(Request(scope))(scope, receive, observed)
        # The route's pattern, never the path: one time series a route, whatever is asked for.
        route = getattr(scope.get("route"), "path", "none")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._metrics.requests.labels(method, route, str(status)).inc()
        seconds = time.perf_counter() - begun
        self._metrics.seconds.labels(method, route).observe(seconds)
        # Without what follows the question mark: that may be a signature. Quoted: one request, one line.
        told = {"status": status, "seconds": round(seconds, 4), "route": route}
        access.info("%s %s %d", method, quote(scope["path"]), status, extra=told)


_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
