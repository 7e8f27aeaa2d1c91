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
from app.dependencies import Dependencies
from app.errors import (
    NotFound,
    PresignUnavailable,
    RequestInvalid,
    StoreUnavailable,
    UploadMissing,
    UploadTooLarge,
)
from app.http.multipart import Part
from app.records.audio import Audio, PendingUpload, incoming_key
from app.records.ids import AUDIO, is_id, new_id

_POLL = 0.1  # s between looks whether another completion of the same upload is over
_SLACK = 60.0  # s that the lock outlives the copying, for the probe


def presign(deps: Dependencies, sent: PresignSent) -> tuple[PendingUpload, str, float]:
    """An upload to await, the signed address for its bytes, and when that ends.

    Raises `PresignUnavailable`, `UploadTooLarge`, and `QuotaExceeded` while too many are awaited.
    """
    settings = deps.settings
    if not deps.storage.can_sign:
        raise PresignUnavailable("The store is a folder of the server: POST the file to /v1/audio.")
    if sent.bytes > settings.upload_bytes:
        raise UploadTooLarge(settings.upload_bytes)
    now = time.time()
    ends = now + settings.signed_url_seconds
    awaited = PendingUpload(
        id=new_id(AUDIO),
        owner=deps.caller.key_id,
        filename=service.sanitize_filename(sent.filename),
        bytes=sent.bytes,
        created_at=now,
        expires_at=ends + settings.upload_timeout,
    )
    deps.audio.create_pending(awaited, ends)
    return awaited, deps.storage.signed_url(incoming_key(awaited.id), settings.signed_url_seconds, "PUT"), ends


async def complete(deps: Dependencies, audio_id: str) -> Audio:
    """The upload, once what was brought is checked, copied and known; again, the same.

    Raises `NotFound`; `UploadMissing` when nothing has arrived; `UploadTooLarge`, `RequestInvalid` for another size
    than was announced, and what the probe raises, after which the bytes are gone and nothing is awaited any more;
    `StoreUnavailable`, after which completing may be tried again.
    """
    if (known := await _find_completed(deps, audio_id)) is not None:
        return known
    async with _completion_lock(deps, audio_id):
        if (known := await _find_completed(deps, audio_id)) is not None:
            return known
        awaited = deps.caller.require_owned(await run_in_threadpool(deps.audio.get_pending, audio_id), "audio")
        try:
            audio = await _receive(deps, awaited)
        except (RequestInvalid, UploadTooLarge):
            await run_in_threadpool(_delete_incoming, deps, audio_id)
            raise
        await run_in_threadpool(_delete_incoming, deps, audio_id)
        return audio


async def _find_completed(deps: Dependencies, audio_id: str) -> Audio | None:
    if not is_id(audio_id, AUDIO):
        raise NotFound("There is no such audio.")
    try:
        return await service.find_async(deps, audio_id)
    except NotFound:
        return None


async def _receive(deps: Dependencies, awaited: PendingUpload) -> Audio:
    key, settings = incoming_key(awaited.id), deps.settings
    try:
        size = await run_in_threadpool(deps.storage.size, key)
    except NotFound as error:
        raise UploadMissing("PUT the file to its address first.") from error
    if size > settings.upload_bytes:
        raise UploadTooLarge(settings.upload_bytes)
    if size != awaited.bytes:
        raise RequestInvalid(f"{awaited.bytes} bytes were announced, and {size} came.")
    async with service.receive_uploads(deps) as uploads:
        with anyio.move_on_after(settings.fetch_timeout):
            chunks = await deps.storage.open_range(key, 0, size)
            return await uploads.receive(Part("file", awaited.filename, chunks), awaited.id)
        raise StoreUnavailable("The store took too long to hand the upload over.")


def _delete_incoming(deps: Dependencies, audio_id: str) -> None:
    # What is written there by the same address later on is in the ledger, for housekeeping.
    deps.storage.delete(incoming_key(audio_id))
    deps.audio.delete_pending(audio_id, deps.caller.key_id)


def _release(lock: Lock) -> None:
    with suppress(LockError):  # it ran out, or was never ours
        lock.release()


@asynccontextmanager
async def _completion_lock(deps: Dependencies, audio_id: str) -> AsyncIterator[None]:
    """Nobody else completes this upload meanwhile: two copies of different bytes would be one upload."""
    seconds = deps.settings.fetch_timeout + _SLACK
    lock = deps.audio.completion_lock(audio_id, seconds)
    with anyio.move_on_after(seconds):
        while not await run_in_threadpool(lock.acquire):
            await anyio.sleep(_POLL)
    try:
        if not await run_in_threadpool(lock.owned):
            raise StoreUnavailable("Another request completes this upload; ask again.")
        yield
    finally:
        with anyio.CancelScope(shield=True):
            await run_sync(_release, lock)
