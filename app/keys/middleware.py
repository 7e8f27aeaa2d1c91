"""The door: who asks, and how often, before a byte of a body is read.

A pure ASGI layer, since FastAPI parses forms before it runs dependencies. Paths that are not named here as open need a
key, those of routes that do not exist too. Key and rate are checked in one round trip, so that a key that is revoked
opens nothing from then on.
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
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import QueueUnavailable, RateLimited, Unauthorized
from app.http.problems import problem
from app.jobs.poll_cache import PollCache
from app.keys import callers, repository
from app.keys.callers import Caller
from app.keys.quotas import Allowance, quota_key, rate_key
from app.keys.signed_urls import UrlSigner
from app.redis_client import CoalescedScript
from app.settings import Settings

log = logging.getLogger("earmark.keys")

PUBLIC_PATHS = {"/", "/livez", "/readyz", "/metrics", "/docs", "/openapi.json"}
PUBLIC_FOLDERS = ("/docs/", "/page/")


class Authenticator:
    """Looks keys and rates up, on the event loop of the server."""

    def __init__(self, redis: Redis, polls: PollCache, signatures: UrlSigner, settings: Settings) -> None:
        self._script = CoalescedScript(redis, Path(__file__).with_suffix(".lua"))
        self._polls = polls
        self._signatures = signatures
        self._settings = settings

    @property
    def is_disabled(self) -> bool:
        """Whether there is nothing to look up: anybody may ask anything at any rate."""
        settings = self._settings
        return settings.auth == "off" and not settings.open_rate and not settings.open_audio_seconds

    async def authenticate(self, scope: Scope) -> tuple[Caller, Allowance, int]:
        """Who asks, what is left to them, and how many seconds too early (0: not at all). Raises `Unauthorized`."""
        key_id, digest = ("", "") if self._settings.auth == "off" else await self._credentials(scope)
        job_id, keys = self._polls.prefetch_keys(scope)
        told: Any = await self._script.run(
            keys=[repository.KEYS_KEY, rate_key(key_id), quota_key(key_id), *keys],
            args=[key_id, digest, self._settings.open_rate, self._settings.open_audio_seconds, job_id],
        )
        if not told:
            raise Unauthorized("The key is not known, or was revoked.", "invalid_token")
        priority, rate, left, wait, reset, quota, used, day_left, *found = told
        self._polls.store_prefetched(scope, keys, found)
        allowance = Allowance(int(rate), left, reset / 1e6, int(quota), float(used), day_left)
        return Caller(key_id, int(priority), allowance), allowance, math.ceil(wait / 1e6)

    async def _credentials(self, scope: Scope) -> tuple[str, str]:
        """The id and digest of the key that was sent, or the id alone where a signed address stands for it."""
        sent = Headers(scope=scope).getlist("authorization")
        if sent:
            scheme, _, written = sent[0].partition(" ")
            key_id = repository.key_id(written.strip())
            if len(sent) > 1 or scheme.lower() != "bearer" or key_id is None:
                raise Unauthorized("Send one header `Authorization: Bearer KEY`.", "invalid_request")
            return key_id, repository.digest(written.strip())
        token = _token(scope)
        if token is None:
            raise Unauthorized("Send a key as `Authorization: Bearer KEY`.")
        key_id = await run_in_threadpool(self._signatures.verify, token, scope["path"])
        if key_id is None:
            raise Unauthorized("The address is not valid here, or not any more; ask anew.", "invalid_token")
        return key_id, ""


def _token(scope: Scope) -> str | None:
    """A signed address's token; it lets nobody change anything."""
    if scope["method"] not in ("GET", "HEAD") or b"token=" not in scope["query_string"]:
        return None
    tokens = parse_qs(scope["query_string"].decode("latin-1"), max_num_fields=16).get("token", [])
    return tokens[0] if len(tokens) == 1 else None


class AuthenticationMiddleware:
    """ASGI middleware: lets in whom the door knows, and tells every caller what it has left."""

    def __init__(self, app: ASGIApp, door: Authenticator) -> None:
        self._app = app
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._door.is_disabled or _is_public(scope["path"]):
            await self._app(scope, receive, send)
            return
        try:
            caller, allowance, early = await self._door.authenticate(scope)
        except Unauthorized as error:
            await problem(Request(scope), error, headers={"WWW-Authenticate": error.challenge})(scope, receive, send)
            return
        except RedisError as error:
            log.error("%s %s: queue: %s", scope["method"], scope["path"], error)
            await problem(Request(scope), QueueUnavailable())(scope, receive, send)
            return

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(allowance.headers())
            await send(message)

        if early:
            refusal = RateLimited(f"{allowance.rate} requests a minute are allowed.", early)
            await problem(Request(scope), refusal)(scope, receive, told)
            return
        callers.set_caller(scope, caller)
        await self._app(scope, receive, told)


def _is_public(path: str) -> bool:
    return path in PUBLIC_PATHS or path.startswith(PUBLIC_FOLDERS)
