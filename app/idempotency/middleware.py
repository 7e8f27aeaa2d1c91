"""ASGI middleware that processes a POST with an `Idempotency-Key` once and replays the first response to repetitions.

Responses that a retry may change are not stored: 429 and 5xx, requests that ended with the client's disconnect, and
errors sent before the whole body was read (a form that is too large), since without the body there is no fingerprint.
Refusals for which there is no room are not stored either (`repository.py`).
"""

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator

import anyio
from anyio.to_thread import run_sync
from fastapi import Request, Response
from redis.exceptions import RedisError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.budgets.process_budgets import ProcessBudgets
from app.errors import (
    ClientGone,
    EarmarkError,
    IdempotencyInProgress,
    IdempotencyMismatch,
    Overloaded,
    QueueUnavailable,
    RequestInvalid,
    UploadTooLarge,
)
from app.http import bodies
from app.http.problems import problem
from app.idempotency.fingerprints import Fingerprint
from app.idempotency.repository import Claim, IdempotencyRepository, StoredResponse
from app.keys import callers
from app.keys.signed_urls import UrlSigner
from app.settings import Settings

log = logging.getLogger("earmark.http")

_HEADER = "idempotency-key"
_VALID_KEY = re.compile(r"[\x21-\x7e]([\x20-\x7e]{0,253}[\x21-\x7e])?")
_BOUNDARY_SLACK = 64 * 1024  # bytes by which a repeated form may be longer, because of its boundary
_RENEWALS = 3  # of a claim during its lease, so that it survives two that fail
_UNSTORED_HEADERS = {b"content-length", b"date"}  # set anew for each response


class IdempotencyMiddleware:
    """ASGI middleware around the routes, inside of `AuthenticationMiddleware`, which sets the caller."""

    def __init__(
        self,
        app: ASGIApp,
        repository: IdempotencyRepository,
        budgets: ProcessBudgets,
        url_signer: UrlSigner,
        settings: Settings,
    ) -> None:
        self._app = app
        self._repository = repository
        self._budgets = budgets
        self._url_signer = url_signer
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (
            scope["type"] != "http"
            or scope["method"] != "POST"
            or _HEADER not in (request := Request(scope, receive)).headers
        ):
            await self._app(scope, receive, send)
            return
        try:
            outcome = await self._claim(request)
        except Overloaded as error:
            if scope["path"].endswith("/cancel"):  # is idempotent without a claim, and frees what others need
                await self._app(scope, receive, send)
            else:
                await problem(request, error)(scope, receive, send)
            return
        except EarmarkError as error:
            await problem(request, error)(scope, receive, send)
            return
        if isinstance(outcome, Claim):
            await self._process(outcome, scope, receive, send)
        else:
            await outcome(scope, receive, send)

    async def _claim(self, request: Request) -> Claim | Response:
        """Return the claim of a first request, or the response to replay.

        Raises `IdempotencyInProgress`, `IdempotencyMismatch`, `RequestInvalid`, `QueueUnavailable`; `RateLimited` and
        `Overloaded` if there is no room for another response.
        """
        key, key_id = request.headers[_HEADER], callers.get_caller(request).key_id
        if not _VALID_KEY.fullmatch(key):
            raise RequestInvalid("An Idempotency-Key has 1 to 255 printable ASCII characters.")
        try:
            await self._require_room(key_id, key)
            with self._budgets.count_refusal("idempotency"):
                outcome = await run_sync(self._repository.claim, key_id, key)
        except RedisError as error:
            log.error("%s %s: queue: %s", request.method, request.url.path, error)
            raise QueueUnavailable() from error
        if outcome is None:
            raise IdempotencyInProgress(
                "The first request with this Idempotency-Key is still being processed: send this one again later."
            )
        if isinstance(outcome, Claim):
            return outcome
        if not await self._matches(request, outcome):
            raise IdempotencyMismatch("This Idempotency-Key was first sent with a different request.")
        return self._replay(outcome, key_id)

    async def _require_room(self, key_id: str, key: str) -> None:
        """Require that Redis has room for another response, unless it has this one."""
        try:
            await self._budgets.redis_memory.require_room()
        except Overloaded:
            if not await run_sync(self._repository.holds, key_id, key):
                raise

    async def _matches(self, request: Request, stored: StoredResponse) -> bool:
        fingerprint = Fingerprint(request)
        try:
            async for chunk in bodies.chunks(request, self._settings, stored.bytes + _BOUNDARY_SLACK):
                fingerprint.feed(chunk, last=False)
        except UploadTooLarge:
            return False
        fingerprint.feed(b"", last=True)
        return fingerprint.complete and fingerprint.digest() == stored.fingerprint

    def _replay(self, stored: StoredResponse, key_id: str) -> Response:
        """Return the first response with new tokens for the signed URLs in it."""
        response = Response(self._url_signer.renew_all(stored.body, key_id), stored.status)
        response.raw_headers += [(name.encode("latin-1"), value.encode("latin-1")) for name, value in stored.headers]
        response.headers["Idempotent-Replayed"] = "true"
        return response

    async def _process(self, claim: Claim, scope: Scope, receive: Receive, send: Send) -> None:
        """Process the request; store the response before it is sent, so that every response sent can be replayed."""
        fingerprint = Fingerprint(Request(scope))
        messages: list[Message] = []

        async def receive_and_hash() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                fingerprint.feed(message.get("body", b""), last=not message.get("more_body", False))
            return message

        async def hold(message: Message) -> None:
            messages.append(message)

        async with _renew_periodically(claim, self._settings.idempotency_lease / _RENEWALS):
            try:
                await self._app(scope, receive_and_hash, hold)
                response = await self._response_to_store(Request(scope, receive_and_hash), fingerprint, messages)
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await _store(claim, None)
                raise
        await _store(claim, response)
        for message in messages:
            await send(message)

    async def _response_to_store(
        self, request: Request, fingerprint: Fingerprint, messages: list[Message]
    ) -> StoredResponse | None:
        """Return the response as it is stored; None if it is not to be stored."""
        status = messages[0]["status"]
        if status in (429, ClientGone.status) or status >= 500:
            return None
        if status < 400 and not fingerprint.complete:  # the route did not read the body
            with contextlib.suppress(EarmarkError):
                async for _ in bodies.chunks(request, self._settings, self._settings.body_bytes):
                    pass
        if not fingerprint.complete:
            return None
        headers = [pair for pair in messages[0]["headers"] if pair[0].lower() not in _UNSTORED_HEADERS]
        return StoredResponse(
            fingerprint=fingerprint.digest(),
            bytes=fingerprint.bytes,
            status=status,
            headers=[(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers],
            body=b"".join(message.get("body", b"") for message in messages[1:]).decode(),
        )


async def _store(claim: Claim, response: StoredResponse | None) -> None:
    """Store the response, or release the claim without one; failures are logged, since the request is processed."""
    try:
        await (run_sync(claim.release) if response is None else run_sync(claim.store, response))
    except RedisError as error:
        log.error("the response to an Idempotency-Key could not be stored: %s", error)


@contextlib.asynccontextmanager
async def _renew_periodically(claim: Claim, interval: float) -> AsyncIterator[None]:
    async def renew() -> None:
        while True:
            await asyncio.sleep(interval)
            try:
                await run_sync(claim.renew)
            except RedisError as error:
                log.error("the claim of an Idempotency-Key could not be renewed: %s", error)

    task = asyncio.create_task(renew())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
