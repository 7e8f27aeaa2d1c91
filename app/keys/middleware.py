"""Authentication and rate limits, before a byte of the body is read.

Pure ASGI middleware, since FastAPI parses forms before it runs dependencies. Every path that is not listed here as
public needs a key, those without a route too. Key and rate limit are checked in one round trip to Redis, so that a
revoked key is refused from the next request on.
"""

import logging
import math
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from redis.asyncio import Redis
from redis.exceptions import RedisError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import QueueUnavailable, RateLimited, Unauthorized
from app.http import access_log
from app.http.problems import problem
from app.jobs.poll_cache import PollCache
from app.keys import callers, repository
from app.keys.callers import Caller
from app.keys.quotas import Allowance, quota_key, rate_key
from app.keys.signed_urls import UrlSigner
from app.keys.wrong_keys import WrongKeyLimit
from app.metrics import Metrics
from app.records.usage import usage_prefix
from app.redis_client import CoalescedScript
from app.settings import Settings

log = logging.getLogger("earmark.keys")

PUBLIC_PATHS = {"/", "/livez", "/readyz", "/metrics", "/docs", "/openapi.json"}
PUBLIC_FOLDERS = ("/docs/", "/page/")


class Authenticator:
    """Checks credentials and rate limits, on the event loop of the server."""

    def __init__(self, redis: Redis, poll_cache: PollCache, url_signer: UrlSigner, settings: Settings) -> None:
        self._script = CoalescedScript(redis, Path(__file__).with_suffix(".lua"))
        self._poll_cache = poll_cache
        self._url_signer = url_signer
        self._settings = settings
        self._retention = int(settings.usage_retention)

    @property
    def is_disabled(self) -> bool:
        """Whether there is nothing to check: no keys, and no limits for requests without one."""
        settings = self._settings
        return settings.auth == "off" and not settings.open_rate and not settings.open_audio_seconds

    async def authenticate(self, scope: Scope) -> tuple[Caller, Allowance, int]:
        """Return the caller, its allowance, and the seconds until its rate limit allows the request (0: now).

        Raises `Unauthorized`.
        """
        key_id, digest = ("", "") if self._settings.auth == "off" else await self._credentials(scope)
        job_id, poll_keys = self._poll_cache.prefetch_keys(scope)
        reply: Any = await self._script.run(
            keys=[repository.KEYS_KEY, rate_key(key_id), quota_key(key_id), usage_prefix(key_id), *poll_keys],
            args=[key_id, digest, self._settings.open_rate, self._settings.open_audio_seconds, self._retention, job_id],
        )
        if not reply:
            raise Unauthorized("The key is unknown or revoked.", "unknown", key_id)
        priority, rate, left, wait, rate_reset, quota, used, quota_reset, *poll_values = reply
        self._poll_cache.keep_prefetch(scope, poll_keys, poll_values)
        allowance = Allowance(int(rate), left, rate_reset / 1e6, int(quota), float(used), quota_reset)
        return Caller(key_id, int(priority), allowance), allowance, math.ceil(wait / 1e6)

    async def _credentials(self, scope: Scope) -> tuple[str, str]:
        """Return the id and digest of the key in the request; for a signed URL its key's id and an empty digest."""
        headers = Headers(scope=scope).getlist("authorization")
        if headers:
            scheme, _, credentials = headers[0].partition(" ")
            api_key = credentials.strip()
            key_id = repository.parse_key_id(api_key)
            if len(headers) > 1 or scheme.lower() != "bearer":
                raise Unauthorized("Send one header `Authorization: Bearer KEY`.", "malformed")
            if key_id is None:
                raise Unauthorized("This is no whole key: `keys create` prints one that begins with emk_.", "malformed")
            return key_id, repository.digest(api_key)
        token = _url_token(scope)
        if token is None:
            raise Unauthorized("Send a key as `Authorization: Bearer KEY`.", "missing")
        key_id = await run_in_threadpool(self._url_signer.verify, token, scope["path"])
        if key_id is None:
            raise Unauthorized("The signed URL is invalid here or has expired; request a new one.", "url")
        return key_id, ""


def _url_token(scope: Scope) -> str | None:
    """Return the token of a signed URL; None for methods that change something, which tokens do not permit."""
    if scope["method"] not in ("GET", "HEAD") or b"token=" not in scope["query_string"]:
        return None
    tokens = parse_qs(scope["query_string"].decode("latin-1"), max_num_fields=16).get("token", [])
    return tokens[0] if len(tokens) == 1 else None


class AuthenticationMiddleware:
    """ASGI middleware that authenticates callers, enforces their rate limits and reports their allowances.

    wrong_keys: how many wrong keys one address may send in a minute.
    """

    def __init__(self, app: ASGIApp, authenticator: Authenticator, metrics: Metrics, wrong_keys: int) -> None:
        self._app = app
        self._authenticator = authenticator
        self._metrics = metrics
        self._wrong_keys = WrongKeyLimit(wrong_keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._authenticator.is_disabled or _is_public(scope["path"]):
            await self._app(scope, receive, send)
            return
        try:
            caller, allowance, wait = await self._authenticator.authenticate(scope)
        except Unauthorized as error:
            await self._refuse(scope, error)(scope, receive, send)
            return
        except RedisError as error:
            log.error("%s %s: queue: %s", scope["method"], scope["path"], error)
            await problem(Request(scope), QueueUnavailable())(scope, receive, send)
            return

        async def send_with_allowance(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(allowance.headers())
            await send(message)

        access_log.note_key(caller.key_id)
        if wait:
            error = RateLimited(f"{allowance.rate} requests a minute are allowed.", wait)
            await problem(Request(scope), error)(scope, receive, send_with_allowance)
            return
        callers.set_caller(scope, caller)
        await self._app(scope, receive, send_with_allowance)

    def _refuse(self, scope: Scope, error: Unauthorized) -> Response:
        """Return the response to a request without a valid key; a request without any key is not a wrong one."""
        self._metrics.refused_keys.labels(error.reason).inc()
        access_log.note_refused_key(error.key_id)
        wait = 0 if error.reason == "missing" else self._wrong_keys.count(access_log.client_address(scope))
        if wait:
            return problem(Request(scope), RateLimited("Too many wrong keys came from this address.", wait))
        return problem(Request(scope), error, headers={"WWW-Authenticate": error.challenge})


def _is_public(path: str) -> bool:
    return path in PUBLIC_PATHS or path.startswith(PUBLIC_FOLDERS)
