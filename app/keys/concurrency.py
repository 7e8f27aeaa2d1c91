"""Bound of the requests that one front-end process answers at once, with a share of it for each API key.

It covers whatever holds a connection: event streams, long polls, uploads, downloads that a client does not read.
"""

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from app.budgets.budget import Budget
from app.errors import Overloaded, RateLimited
from app.http.problems import problem
from app.http.uvicorn_protocol import HEALTH_PATHS
from app.keys import callers


class ConcurrencyMiddleware:
    """ASGI middleware inside of `AuthenticationMiddleware`, which sets the caller; health checks are not counted."""

    def __init__(self, app: ASGIApp, budget: Budget) -> None:
        self._app = app
        self._budget = budget

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in HEALTH_PATHS:
            await self._app(scope, receive, send)
            return
        key_id = callers.get_caller(Request(scope)).key_id
        try:
            self._budget.take(key_id, 1)
        except (RateLimited, Overloaded) as error:
            await problem(Request(scope), error)(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            self._budget.give_back(key_id, 1)
