"""Uploads that clients bring to the store themselves, by a signed address, and then complete.

The address leads to `incoming/ID`, where its holder may write whatever it likes for as long as the signature lives.
Completing therefore copies the bytes to the upload's own key, which no signature reaches, and it is that copy which
is measured, hashed and probed, like any other upload.
"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import anyio
from anyio.to_thread import run_sync
from redis.exceptions import LockError
from redis.lock import Lock
from starlette.concurrency import run_in_threadpool

from app.audio import service
from app.audio.schemas import PresignSent
from app.dependencies import Parts
from app.errors import (
    NotFound,
    PresignUnavailable,
    RequestInvalid,
    StoreUnavailable,
    UploadMissing,
    UploadTooLarge,
)
from app.http.multipart import Part
from app.records.audio import Audio, Awaited, incoming_key
from app.records.ids import AUDIO, is_id, new_id

_POLL = 0.1  # s between looks whether another completion of the same upload is over
_SLACK = 60.0  # s that the lock outlives the copying, for the probe


def presign(parts: Parts, sent: PresignSent) -> tuple[Awaited, str, float]:
    """An upload to await, the signed address for its bytes, and when that ends.

    Raises `PresignUnavailable`, `UploadTooLarge`, and `QuotaExceeded` while too many are awaited.
    """
    settings = parts.settings
    if not parts.storage.signs:
        raise PresignUnavailable("The store is a folder of the server: POST the file to /v1/audio.")
    if sent.bytes > settings.upload_bytes:
        raise UploadTooLarge(f"A file may have {settings.upload_bytes} bytes.")
    now = time.time()
    ends = now + settings.signed_url_seconds
    awaited = Awaited(
        id=new_id(AUDIO),
        owner=parts.caller.key_id,
        filename=service.plain_name(sent.filename),
        bytes=sent.bytes,
        created_at=now,
        expires_at=ends + settings.upload_timeout,
    )
    parts.audio.expect(awaited, ends)
    return awaited, parts.storage.signed_url(incoming_key(awaited.id), settings.signed_url_seconds, "PUT"), ends


async def complete(parts: Parts, audio_id: str) -> Audio:
    """The upload, once what was brought is checked, copied and known; again, the same.

    Raises `NotFound`; `UploadMissing` when nothing has arrived; `UploadTooLarge`, `RequestInvalid` for another size
    than was announced, and what the probe raises, after which the bytes are gone and nothing is awaited any more;
    `StoreUnavailable`, after which completing may be tried again.
    """
    if (known := await _known(parts, audio_id)) is not None:
        return known
    async with _alone(parts, audio_id):
        if (known := await _known(parts, audio_id)) is not None:
            return known
        awaited = parts.caller.own(await run_in_threadpool(parts.audio.awaited, audio_id), "audio")
        try:
            audio = await _taken_in(parts, awaited)
        except (RequestInvalid, UploadTooLarge):
            await run_in_threadpool(_let_go, parts, audio_id)
            raise
        await run_in_threadpool(_let_go, parts, audio_id)
        return audio


async def _known(parts: Parts, audio_id: str) -> Audio | None:
    if not is_id(audio_id, AUDIO):
        raise NotFound("There is no such audio.")
    try:
        return await service.find_async(parts, audio_id)
    except NotFound:
        return None


async def _taken_in(parts: Parts, awaited: Awaited) -> Audio:
    key, settings = incoming_key(awaited.id), parts.settings
    try:
        size = await run_in_threadpool(parts.storage.size, key)
    except NotFound as error:
        raise UploadMissing("PUT the file to its address first.") from error
    if size > settings.upload_bytes:
        raise UploadTooLarge(f"A file may have {settings.upload_bytes} bytes.")
    if size != awaited.bytes:
        raise RequestInvalid(f"{awaited.bytes} bytes were announced, and {size} came.")
    async with service.received(parts) as uploads:
        with anyio.move_on_after(settings.fetch_timeout):
            chunks = await parts.storage.open_range(key, 0, size)
            return await uploads.receive(Part("file", awaited.filename, chunks), awaited.id)
        raise StoreUnavailable("The store took too long to hand the upload over.")


def _let_go(parts: Parts, audio_id: str) -> None:
    # What is written there by the same address later on is in the ledger, for housekeeping.
    parts.storage.delete(incoming_key(audio_id))
    parts.audio.arrived(audio_id, parts.caller.key_id)


def _unlocked(lock: Lock) -> None:
    with suppress(LockError):  # it ran out, or was never ours
        lock.release()


@asynccontextmanager
async def _alone(parts: Parts, audio_id: str) -> AsyncIterator[None]:
    """Nobody else completes this upload meanwhile: two copies of different bytes would be one upload."""
    seconds = parts.settings.fetch_timeout + _SLACK
    lock = parts.audio.completing(audio_id, seconds)
    with anyio.move_on_after(seconds):
        while not await run_in_threadpool(lock.acquire):
            await anyio.sleep(_POLL)
    try:
        if not await run_in_threadpool(lock.owned):
            raise StoreUnavailable("Another request completes this upload; ask again.")
        yield
    finally:
        with anyio.CancelScope(shield=True):
            await run_sync(_unlocked, lock)
