"""ASGI middleware: does a POST with an `Idempotency-Key` once, and answers its repetitions with the first answer.

Not kept, so that the request may be tried again: answers of 429 and 5xx, what was broken off since the client hung
up, and refusals that came before the whole body
was read, as of a form that is too large; without the body, nothing tells what they refused.
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

from app.errors import (
    ClientGone,
    EarmarkError,
    IdempotencyInProgress,
    IdempotencyMismatch,
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
_SANE = re.compile(r"[\x21-\x7e]([\x20-\x7e]{0,253}[\x21-\x7e])?")
_SLACK = 64 * 1024  # bytes by which the same form may be longer: its boundary is another one
_OF_THE_MOMENT = {b"content-length", b"date"}  # headers that a repetition makes anew


class IdempotencyMiddleware:
    """Around the routes, and inside of the layer that knows who asks."""

    def __init__(self, app: ASGIApp, answers: IdempotencyRepository, signatures: UrlSigner, settings: Settings) -> None:
        self._app = app
        self._answers = answers
        self._signatures = signatures
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
            found = await self._claim(request)
        except EarmarkError as error:
            await problem(request, error)(scope, receive, send)
            return
        if isinstance(found, Claim):
            await self._answer_first(found, scope, receive, send)
        else:
            await found(scope, receive, send)

    async def _claim(self, request: Request) -> Claim | Response:
        """The right to answer, or the answer that was given. Raises what a repetition that is none is answered."""
        key, key_id = request.headers[_HEADER], callers.get_caller(request).key_id
        if not _SANE.fullmatch(key):
            raise RequestInvalid("An Idempotency-Key has 1 to 255 printable ASCII characters.")
        try:
            found = await run_sync(self._answers.claim, key_id, key)
        except RedisError as error:
            log.error("%s %s: queue: %s", request.method, request.url.path, error)
            raise QueueUnavailable() from error
        if found is None:
            raise IdempotencyInProgress("The first request with this Idempotency-Key is not answered yet.")
        if isinstance(found, Claim):
            return found
        if not await self._is_same(request, found):
            raise IdempotencyMismatch("This Idempotency-Key was first sent with another request.")
        return self._replay(found, key_id)

    async def _is_same(self, request: Request, answer: StoredResponse) -> bool:
        fingerprint = Fingerprint(request)
        try:
            async for chunk in bodies.chunks(request, self._settings, answer.bytes + _SLACK):
                fingerprint.feed(chunk, last=False)
        except UploadTooLarge:
            return False
        fingerprint.feed(b"", last=True)
        return fingerprint.complete and fingerprint.digest() == answer.fingerprint

    def _replay(self, answer: StoredResponse, key_id: str) -> Response:
        """The first answer; addresses in it that were signed then are signed anew."""
        response = Response(self._signatures.renew_all(answer.body, key_id), answer.status)
        response.raw_headers += [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers]
        response.headers["Idempotent-Replayed"] = "true"
        return response

    async def _answer_first(self, claim: Claim, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request be answered; keep the answer before it is sent, so that who has it can have it again."""
        fingerprint = Fingerprint(Request(scope))
        messages: list[Message] = []

        async def seen() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                fingerprint.feed(message.get("body", b""), last=not message.get("more_body", False))
            return message

        async def held(message: Message) -> None:
            messages.append(message)

        async with _renew_until_done(claim, _renewals(self._settings)):
            try:
                await self._app(scope, seen, held)
                answer = await self._stored_response(Request(scope, seen), fingerprint, messages)
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await _store(claim, None)
                raise
        await _store(claim, answer)
        for message in messages:
            await send(message)

    async def _stored_response(
        self, request: Request, fingerprint: Fingerprint, messages: list[Message]
    ) -> StoredResponse | None:
        """The answer as it is kept; None where it is not to be."""
        status = messages[0]["status"]
        if status in (429, ClientGone.status) or status >= 500:
            return None
        if status < 400 and not fingerprint.complete:  # a body that the route had no use for
            with contextlib.suppress(EarmarkError):
                async for _ in bodies.chunks(request, self._settings, self._settings.body_bytes):
                    pass
        if not fingerprint.complete:
            return None
        headers = [pair for pair in messages[0]["headers"] if pair[0].lower() not in _OF_THE_MOMENT]
        return StoredResponse(
            fingerprint=fingerprint.digest(),
            bytes=fingerprint.bytes,
            status=status,
            headers=[(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers],
            body=b"".join(message.get("body", b"") for message in messages[1:]).decode(),
        )


def _renewals(settings: Settings) -> float:
    """Seconds between two of them: a claim outlives two that fail."""
    return settings.idempotency_lease / 3


async def _store(claim: Claim, answer: StoredResponse | None) -> None:
    """What was done is done and is answered, whether or not that can be kept."""
    try:
        await (run_sync(claim.release) if answer is None else run_sync(claim.store, answer))
    except RedisError as error:
        log.error("an answer could not be kept for its Idempotency-Key: %s", error)


@contextlib.asynccontextmanager
async def _renew_until_done(claim: Claim, seconds: float) -> AsyncIterator[None]:
    async def renew() -> None:
        while True:
            await asyncio.sleep(seconds)
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
